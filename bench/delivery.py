"""How long a run's live text takes from Redis to 500 users, each with a stream of their own: `make bench-streams`.

The gateway in a process of its own; a stub answers for agents, whose tables have nothing that the hints do not say.
Events are published evenly, a thousand a second, and stamped; the client's clock is the publisher's. What 5,000 open
streams cost in memory is `streams` beside this.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final, cast
from urllib.parse import urlsplit
from uuid import UUID

import httpx
import orjson
import redis.asyncio
import uvloop

from bench.frame import CPU, LATENCIES, OURS, RSS, Column, Contender, Figures, Report, alternate, at_most
from bench.load import latencies
from bench.processes import spent
from bench.report import publish
from bench.service_process import service
from bench.streams import sign_up
from libs.common.ids import new_id
from tests.harness.database import new_database
from tests.harness.gateway import gateway_settings
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place

USERS: Final = int(os.environ.get("BENCH_USERS", "500"))
PER_S: Final = 1_000
SECONDS: Final = float(os.environ.get("BENCH_SECONDS", "4"))
_EMPTY: Final = (
    b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\r\n{"items":[],"heads":{}}'
)


class Stub(asyncio.Protocol):
    """Agents with nothing in its tables yet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        for _ in range(data.count(b"\r\n\r\n")):
            self._transport.write(_EMPTY)


class Reader(asyncio.Protocol):
    """One open stream; notes how old each event is when it comes."""

    def __init__(self, ages_ms: list[float]) -> None:
        self._ages_ms = ages_ms
        self._left = b""
        self.answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        """Whether the stream was opened."""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        if not self.answered.done():
            self.answered.set_result(data.startswith(b"HTTP/1.1 200"))
        *lines, self._left = (self._left + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                self._ages_ms.append((now - orjson.loads(line[6:])["at"]) * 1000)


@dataclass(slots=True, kw_only=True)
class Audience:
    runs: list[UUID]
    publisher: redis.asyncio.Redis
    pid: int
    ages_ms: list[float]
    told: dict[UUID, int] = field(default_factory=dict[UUID, int])

    async def measure(self) -> Figures:
        self.ages_ms.clear()
        count, chance, before = int(PER_S * SECONDS), random.Random(1), spent(self.pid)  # noqa: S311 - no secret
        started = time.perf_counter()
        for number in range(count):
            await asyncio.sleep(max(0, started + number / PER_S - time.perf_counter()))
            run_id = chance.choice(self.runs)
            self.told[run_id] = self.told.get(run_id, 0) + 1
            event = {
                "seq": self.told[run_id],
                "type": "run.delta",
                "data": {"text": "Talk to ten customers.", "at": time.perf_counter()},
            }
            message = orjson.dumps(event)
            await self.publisher.publish(f"run:{run_id}", message)  # pyright: ignore[reportUnknownMemberType]
        took_s = time.perf_counter() - started
        await asyncio.sleep(1)
        after = spent(self.pid)
        if len(self.ages_ms) != count:
            raise RuntimeError(f"{count} events were published and {len(self.ages_ms)} delivered")
        return {
            "per_s": count / took_s,
            **latencies(self.ages_ms),
            "cpu_s_per_1000": (after.cpu_s - before.cpu_s) / count * 1000,
            "rss_mb": after.rss_mb,
        }


@asynccontextmanager
async def audience(servers: Servers) -> AsyncGenerator[Audience, None]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(new_database(servers))
        place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
        loop = asyncio.get_running_loop()
        stub = await loop.create_server(Stub, "127.0.0.1", 0)
        stack.callback(stub.close)
        agents_url = f"http://127.0.0.1:{stub.sockets[0].getsockname()[1]}"
        settings = gateway_settings(place, agents_url=agents_url, log_level="INFO", rate_limit_max_requests=1_000_000)
        url, pid = await stack.enter_async_context(service("gateway", settings))
        key = settings.next_public_supabase_anon_key.get_secret_value()
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, headers={"apikey": key}, timeout=60))
        runs, ages_ms = [new_id() for _ in range(USERS)], list[float]()
        for number, run_id in enumerate(runs):
            reader = await open_stream(url, run_id, await signed_up(client, number), ages_ms)
            assert reader.transport is not None
            stack.callback(reader.transport.close)
        publisher = redis.asyncio.Redis.from_url(place.redis_url)  # pyright: ignore[reportUnknownMemberType]
        stack.push_async_callback(publisher.aclose)
        await asyncio.sleep(2)
        yield Audience(runs=runs, publisher=publisher, pid=pid, ages_ms=ages_ms)


async def signed_up(client: httpx.AsyncClient, number: int) -> str:
    """Somebody's token. Refused with 503 on a loaded machine, they come again."""
    for _ in range(30):
        try:
            return await sign_up(client, number)
        except httpx.HTTPStatusError as error:
            if error.response.status_code != HTTPStatus.SERVICE_UNAVAILABLE:
                raise
        await asyncio.sleep(1)
    raise RuntimeError("nobody could sign up within half a minute")


async def open_stream(url: str, run_id: UUID, token: str, ages_ms: list[float]) -> Reader:
    """Refused on a loaded machine, it is asked for again."""
    address = urlsplit(url)
    loop = asyncio.get_running_loop()
    request = f"GET /v1/runs/{run_id}/events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n"
    for _ in range(30):
        _, reader = await loop.create_connection(lambda: Reader(ages_ms), address.hostname or "", address.port or 80)
        assert reader.transport is not None
        reader.transport.write(request.encode())
        async with asyncio.timeout(30):
            if await reader.answered:
                return reader
        reader.transport.close()
        await asyncio.sleep(1)
    raise RuntimeError("a stream was refused for half a minute")


async def compare(servers: Servers) -> Report:
    async with audience(servers) as it:
        results = await alternate([Contender(name=OURS, measure=it.measure, warm_up=it.measure)])
    return Report(
        name="streams",
        title="Streams: live text to each of many users",
        how=f"{USERS} users, each with an open stream of their own run; {PER_S:,} events a second published to Redis, "
        f"{SECONDS:.0f} s a round; from before publishing to the client's socket.",
        columns=[Column(name="per_s", title="published a second"), *LATENCIES, CPU, RSS],
        results=results,
        targets=[
            at_most("delivery p50 below 2 ms", results.median(OURS, "p50_ms"), 2, unit=" ms"),
            at_most("delivery p99 below 10 ms", results.median(OURS, "p99_ms"), 10, unit=" ms"),
        ],
    )


def main() -> None:
    with start_servers(workers=1) as servers:
        publish(uvloop.run(compare(servers)))


if __name__ == "__main__":
    main()
