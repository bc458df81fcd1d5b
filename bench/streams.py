"""What 5,000 open event streams cost one process of the gateway, and what a reader costs that stops reading.

    .venv/bin/python -m bench.streams [--streams 5000]

Starts servers and one gateway process of its own, with a user for every ten streams; prints its resident memory when
idle, with all streams open for a while, and after they are closed.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import httpx

from tests.harness.database import new_database
from tests.harness.gateway import gateway_settings
from tests.harness.servers import start_servers
from tests.harness.services import Place

PER_USER: Final = 10
ALLOWED_MB: Final = 150
HELD_S: Final = 20
_SECRETS: Final = (
    "database_url",
    "amqp_url",
    "redis_url",
    "service_token_secret",
    "next_public_supabase_anon_key",
    "supabase_service_role_key",
    "supabase_jwt_secret",
    "auth_signing_keys",
)


def resident_mb(pid: int) -> float:
    """Of this very process, without what it started."""
    fields = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in fields if line.startswith("VmRSS")) / 1024


def environment_of(place: Place, port: int) -> Mapping[str, str]:
    settings = gateway_settings(place)
    secrets = {name.upper(): getattr(settings, name).get_secret_value() for name in _SECRETS}
    return {
        **secrets,
        "PATH": os.environ["PATH"],
        "PORT": str(port),
        "ENVIRONMENT": "test",
        "LOG_LEVEL": "ERROR",
        "AUTH_AUTOCONFIRM": "true",
        "RATE_LIMIT_MAX_REQUESTS": "1000000",
        "AUTH_RATE_LIMIT_MAX_REQUESTS": "1000000",
        "STREAMS_PER_USER": str(PER_USER),
    }


async def sign_up(client: httpx.AsyncClient, number: int) -> str:
    body = {"data": {"number": number}}  # anonymous: no password is hashed
    answer = await client.post("/auth/v1/signup", json=body)
    answer.raise_for_status()
    return answer.json()["access_token"]


async def open_stream(port: int, token: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As a client does it: refused with 503 on a loaded machine, it comes again."""
    reader, writer, status = await _ask(port, token)
    for _ in range(30):
        if b" 503 " not in status:
            break
        writer.close()
        await asyncio.sleep(1)
        reader, writer, status = await _ask(port, token)
    if b" 200 " not in status:
        raise RuntimeError(f"a stream was refused: {status + await reader.read(2000)!r}")
    return reader, writer


async def _ask(port: int, token: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /v1/events HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    return reader, writer, await reader.readline()


async def measure(port: int, pid: int, key: str, streams: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers={"apikey": key}, timeout=60) as client:
        tokens = [await sign_up(client, number) for number in range(-(-streams // PER_USER))]
        await asyncio.sleep(2)
        idle_mb = resident_mb(pid)
        started = time.perf_counter()
        opened: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        for first in range(0, streams, 50):
            wanted = range(first, min(first + 50, streams))
            opened += await asyncio.gather(*(open_stream(port, tokens[number // PER_USER]) for number in wanted))
        took_s = time.perf_counter() - started
        await asyncio.sleep(HELD_S)
        full_mb = resident_mb(pid)
        asked = time.perf_counter()
        answer = await client.get("/health")
        health_ms = (time.perf_counter() - asked) * 1000
        for _, writer in opened:
            writer.close()
        await asyncio.sleep(5)
    print(
        f"load {os.getloadavg()[0]:.1f}; {len(opened)} streams opened in {took_s:.1f} s; /health {answer.status_code}"
    )
    print(f"resident: idle {idle_mb:.0f} MB, open {full_mb:.0f} MB, closed {resident_mb(pid):.0f} MB")
    print(f"/health beside them: {health_ms:.0f} ms")
    above_mb = full_mb - idle_mb
    verdict = "held" if above_mb <= ALLOWED_MB else "BROKEN"
    print(f"above idle: {above_mb:.0f} MB ({above_mb * 1024 / streams:.1f} kB each), allowed {ALLOWED_MB}: {verdict}")


async def main() -> None:
    parser = argparse.ArgumentParser(description="Measure open event streams.")
    parser.add_argument("--streams", type=int, default=5000)
    streams: int = parser.parse_args().streams
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    port = 18_460
    with start_servers(workers=1) as servers:
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(new_database(servers))
            place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
            environment = environment_of(place, port)
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "services.gateway.main", "all"), env=environment
            )
            try:
                await _until_healthy(port)
                await measure(port, process.pid, environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"], streams)
            finally:
                process.terminate()
                await process.wait()


async def _until_healthy(port: int) -> None:
    async with httpx.AsyncClient() as client:
        for _ in range(300):
            try:
                if (await client.get(f"http://127.0.0.1:{port}/health")).is_success:
                    return
            except httpx.HTTPError:
                pass
            await asyncio.sleep(0.1)
    raise RuntimeError(json.dumps({"error": "the gateway did not start"}))


if __name__ == "__main__":
    asyncio.run(main())
