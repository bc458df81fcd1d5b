"""Authenticated, rate-limited, proxied GETs a second, beside gateways that do the same: `make bench-gateway`.

Every contender verifies an ES256 token of one of a hundred users, counts the request in Redis, passes it on to the same
upstream (nginx with a constant answer, so that it costs next to nothing) and writes a line of log. nginx as a plain
proxy is the floor: it does none of this.
"""

import itertools
import os
import tempfile
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import uvloop
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt import PyJWK

from bench.frame import CPU, LATENCIES, OURS, PER_S, RSS, Contender, Figures, Report, alternate, at_least, at_most
from bench.load import as_bytes, at_rate, require_wrk, wrk
from bench.peer_environments import NODE, PEERS, peer_node, peer_python, pinned
from bench.processes import answering, running, spent
from bench.report import publish
from bench.service_process import service
from libs.common.ids import new_id
from tests.harness.database import new_database
from tests.harness.gateway import gateway_settings
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place
from tests.harness.stripe_emulator import free_port

USERS: Final = 100
CONNECTIONS: Final = 32
SECONDS: Final = int(os.environ.get("BENCH_SECONDS", "4"))
RATE: Final = 200
PATH: Final = "/v1/usage"
FASTIFY: Final = "Fastify 5 with its plugins"
EXPRESS: Final = "Express 5 as usual"
FASTAPI: Final = "FastAPI and httpx, plain"
FLOOR: Final = "nginx, a proxy alone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    name: str
    url: str
    pid: int
    tokens: list[str]

    async def load(self, seconds: int) -> Figures:
        before = spent(self.pid)
        result = await wrk(f"{self.url}{PATH}", tokens=self.tokens, connections=CONNECTIONS, seconds=seconds)
        after = spent(self.pid)
        requests = result.pop("requests")
        used_s = after.cpu_s - before.cpu_s
        return {**result, "cpu_s_per_1000": used_s / requests * 1000, "rss_mb": after.rss_mb}

    def contender(self) -> Contender:
        return Contender(name=self.name, measure=lambda: self.load(SECONDS), warm_up=lambda: self.load(2))


@asynccontextmanager
async def nginx() -> AsyncGenerator[tuple[str, str, int], None]:
    """The upstream's address, the floor's, and the process id."""
    upstream, port = free_port(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        text = (PEERS / "nginx" / "gateway.conf").read_text(encoding="utf-8")
        for name, value in {"FOLDER": folder, "UPSTREAM": str(upstream), "PORT": str(port)}.items():
            text = text.replace(name, value)
        place = Path(folder) / "gateway.conf"
        place.write_text(text, encoding="utf-8")
        async with running(("nginx", "-c", place, "-e", f"{folder}/error.log")) as pid:
            await answering(f"http://127.0.0.1:{port}/v1/usage", pid)
            yield f"http://127.0.0.1:{upstream}", f"http://127.0.0.1:{port}", pid


async def sign_up(url: str, apikey: str) -> list[str]:
    async with httpx.AsyncClient(base_url=url, headers={"apikey": apikey}, timeout=30) as client:

        async def one() -> str:
            body = {"email": f"bench-{new_id().hex}@example.com", "password": new_id().hex}
            return (await client.post("/auth/v1/signup", json=body)).raise_for_status().json()["access_token"]

        return [await one() for _ in range(USERS)]


async def public_key(url: str) -> str:
    async with httpx.AsyncClient() as client:
        keys: Mapping[str, Any] = (await client.get(f"{url}/auth/v1/.well-known/jwks.json")).raise_for_status().json()
    key = PyJWK(keys["keys"][0]).key
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


@asynccontextmanager
async def gateways(servers: Servers) -> AsyncGenerator[tuple[list[Gateway], str], None]:
    """All contenders, running, ours first; and the upstream's address."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(new_database(servers))
        upstream, floor_url, floor_pid = await stack.enter_async_context(nginx())
        place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
        settings = gateway_settings(
            place,
            metering_url=upstream,
            agents_url=upstream,
            billing_url=upstream,
            rate_limit_max_requests=10_000_000,
            log_level="INFO",
        )
        url, pid = await stack.enter_async_context(service("gateway", settings))
        tokens = await sign_up(url, settings.next_public_supabase_anon_key.get_secret_value())
        environment = {
            "PUBLIC_KEY": await public_key(url),
            "ISSUER": settings.issuer,
            "REDIS_URL": place.redis_url,
            "UPSTREAM": upstream,
        }
        listed = [Gateway(name=OURS, url=url, pid=pid, tokens=tokens)]
        for name, short, command, folder in (
            (FASTIFY, "fastify", (NODE, "gateway.js"), peer_node("fastify")),
            (EXPRESS, "express", (NODE, "gateway.js"), peer_node("express")),
            (FASTAPI, "fastapi", (peer_python("fastapi_httpx"), "gateway.py"), PEERS / "fastapi_httpx"),
        ):
            port = free_port()
            own = {**environment, "PORT": str(port), "NODE_ENV": "production"}
            pid = await stack.enter_async_context(running(command, environment=own, folder=folder, name=short))
            peer = f"http://127.0.0.1:{port}"
            await answering(f"{peer}/v1/usage", pid)
            listed.append(Gateway(name=name, url=peer, pid=pid, tokens=tokens))
        listed.append(Gateway(name=FLOOR, url=floor_url, pid=floor_pid, tokens=tokens))
        yield listed, upstream


async def overhead(ours: Gateway, upstream: str) -> Figures:
    """What we add to a call at a calm rate, in milliseconds: quantiles of ours less those of the direct call."""
    as_user = [as_bytes("GET", PATH, headers={"Authorization": f"Bearer {token}"}) for token in ours.tokens]
    direct = [as_bytes("GET", "/internal/usage", headers={})]
    through = (await at_rate(ours.url, itertools.cycle(as_user), per_s=RATE, seconds=SECONDS)).figures()
    without = (await at_rate(upstream, itertools.cycle(direct), per_s=RATE, seconds=SECONDS)).figures()
    return {name: through[name] - without[name] for name in ("p50_ms", "p95_ms", "p99_ms")}


async def compare(servers: Servers) -> Report:
    async with gateways(servers) as (listed, upstream):
        ours = listed[0]
        results = await alternate([it.contender() for it in listed])
        calm = await alternate([Contender(name=OURS, measure=lambda: overhead(ours, upstream))], rounds=3)
    added = {name: calm.median(OURS, name) for name in ("p50_ms", "p95_ms", "p99_ms")}
    return Report(
        name="gateway",
        title="Gateway: authenticated, rate-limited, proxied GETs",
        how=f"{CONNECTIONS} connections, {USERS} users with ES256 tokens, rate limit counted in Redis, one line of log "
        f"a request, {SECONDS} s a round, one process each; load by wrk.",
        columns=[PER_S, *LATENCIES, CPU, RSS],
        results=results,
        targets=[
            at_least("at least 1.25 times Fastify", results.ratio("per_s", to=FASTIFY), 1.25),
            at_most("p99 not above Fastify's", results.ratio("p99_ms", to=FASTIFY), 1.0),
            at_most(f"added to a direct call at {RATE} a second, p95 ≤ 1.5 ms", added["p95_ms"], 1.5, unit=" ms"),
            at_most(f"added to a direct call at {RATE} a second, p99 ≤ 3 ms", added["p99_ms"], 3.0, unit=" ms"),
        ],
        notes=[
            f"{results.ratio('per_s', to=EXPRESS):.1f} times Express",
            f"{results.ratio('per_s', to=FASTAPI):.1f} times plain FastAPI with httpx",
            f"{results.ratio('per_s', to=FLOOR):.2f} of nginx, which checks and counts nothing",
            (
                f"fastify {pinned('fastify', 'fastify')}, express {pinned('express', 'express')}, "
                f"fastapi {pinned('fastapi_httpx', 'fastapi')}, httpx {pinned('fastapi_httpx', 'httpx')}"
            ),
        ],
    )


def main() -> None:
    require_wrk()
    with start_servers(workers=1) as servers:
        publish(uvloop.run(compare(servers)))


if __name__ == "__main__":
    main()
