"""Metering in a process of its own on real servers, for the benchmarks."""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.servers import Servers
from tests.harness.services import SERVICE_TOKEN_SECRET
from tests.harness.stripe_emulator import free_port


@asynccontextmanager
async def service_process(
    servers: Servers, database: TestDatabase, mode: str = "api"
) -> AsyncGenerator[tuple[str, int], None]:
    """Its address and its process id; it is stopped on leaving."""
    port = free_port()
    environment = {
        "ENVIRONMENT": "test",
        "DATABASE_URL": database.url("venture_metering"),
        "AMQP_URL": f"{servers.amqp_urls['metering']}/{servers.vhosts[0]}",
        "REDIS_URL": f"{servers.redis_url}/0",
        "SERVICE_TOKEN_SECRET": SERVICE_TOKEN_SECRET,
        "PORT": str(port),
        "LOG_LEVEL": "WARNING",
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.metering.main",
        mode,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=url) as client:

            async def answers() -> bool:
                try:
                    return (await client.get("/health")).is_success
                except httpx.TransportError:
                    return False

            await eventually(answers, within_s=60)
        yield url, process.pid
    finally:
        process.terminate()
        await process.wait()


async def database_pids(database: TestDatabase) -> list[int]:
    rows = await database.fetch("SELECT pid FROM pg_stat_activity WHERE application_name = 'venture-metering'")
    return [row["pid"] for row in rows]


def cpu_s(pids: list[int]) -> float:
    """Processor time these processes have used so far: a figure that a busy machine leaves alone."""
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / os.sysconf("SC_CLK_TCK")
