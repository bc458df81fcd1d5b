"""How many signed deliveries billing stores a second, and how long each waits: `python -m bench.webhook_ingest [n]`.

The service runs in a process of its own on real servers, every event is a new one about one of a hundred
subscriptions, a tenth of the deliveries is forged, and each 200 leaves after the commit. The client shares the machine.
"""

import asyncio
import hashlib
import hmac
import os
import sys
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import orjson

from libs.common.ids import new_id
from tests.harness.database import new_database
from tests.harness.patience import eventually
from tests.harness.servers import Servers, start_servers
from tests.harness.services import SERVICE_TOKEN_SECRET
from tests.harness.storm import Delivery, storm
from tests.harness.stripe_emulator import SECRET_KEY, free_port, new_webhook_secret

SECRET: Final = new_webhook_secret()
AT_ONCE: Final = 64


def deliveries(count: int) -> list[tuple[Delivery, bool]]:
    now, run = int(time.time()), new_id().hex
    made: list[tuple[Delivery, bool]] = []
    for number in range(count):
        subject = {"id": f"sub_{number % 100}", "object": "subscription", "customer": f"cus_{number % 100}"}
        payload = orjson.dumps(
            {
                "id": f"evt_{run}_{number}",
                "object": "event",
                "type": "customer.subscription.updated",
                "created": now,
                "livemode": False,
                "api_version": "2026-10-28.endive",
                # As large as the events of a subscription are.
                "data": {"object": {**subject, "description": "x" * 4_000}},
            }
        )
        is_forged = number % 10 == 9  # noqa: PLR2004 - a tenth
        secret = "whsec_of_somebody_else" if is_forged else SECRET
        signed = hmac.new(secret.encode(), f"{now}.".encode() + payload, hashlib.sha256).hexdigest()
        made.append((Delivery(payload=payload, signature=f"t={now},v1={signed}"), is_forged))
    return made


@asynccontextmanager
async def service_process(environment: Mapping[str, str]) -> AsyncGenerator[tuple[str, int], None]:
    """Its address and its process id."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.billing.main",
        "api",
        env={**os.environ, **environment, "PORT": str(port), "LOG_LEVEL": "INFO"},
        stdout=asyncio.subprocess.DEVNULL,
    )
    base_url = f"http://127.0.0.1:{port}"
    try:
        async with httpx.AsyncClient(base_url=base_url) as client:

            async def answers() -> bool:
                try:
                    return (await client.get("/health")).is_success
                except httpx.TransportError:
                    return False

            await eventually(answers, within_s=20)
        yield base_url, process.pid
    finally:
        process.terminate()
        await process.wait()


def cpu_s(pid: int) -> float:
    """Processor time the process has used so far: a figure that a busy machine leaves alone."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(servers: Servers, count: int) -> None:
    async with new_database(servers) as database:
        environment = {
            "ENVIRONMENT": "test",
            "DATABASE_URL": database.url("venture_billing"),
            "AMQP_URL": f"{servers.amqp_urls['billing']}/{servers.vhosts[0]}",
            "REDIS_URL": f"{servers.redis_url}/0",
            "SERVICE_TOKEN_SECRET": SERVICE_TOKEN_SECRET,
            "STRIPE_SECRET_KEY": SECRET_KEY,
            "STRIPE_WEBHOOK_SECRET": SECRET,
            "STRIPE_API_BASE": "http://127.0.0.1:9",
            "FRONTEND_URL": "https://app.example.com",
        }
        async with service_process(environment) as (base_url, pid):
            await storm(base_url, deliveries(500), at_once=AT_ONCE)
            before = await database.fetchval("SELECT count(*) FROM billing.stripe_events")
            wave, used_s = deliveries(count), cpu_s(pid)
            outcome = await storm(base_url, wave, at_once=AT_ONCE)
            used_s = cpu_s(pid) - used_s
            rows = await database.fetchval("SELECT count(*) FROM billing.stripe_events") - before
            settings = {name: await database.fetchval(f"SHOW {name}") for name in ("fsync", "synchronous_commit")}
    print(
        f"{count} deliveries, {AT_ONCE} at once: {outcome.per_s:.0f}/s, p50 {outcome.percentile_ms(50):.1f} ms, "
        f"p99 {outcome.percentile_ms(99):.1f} ms, max {outcome.percentile_ms(100):.1f} ms; genuine {outcome.genuine}, "
        f"forged {outcome.forged}, {rows} rows; "
        f"{used_s / count * 1000:.2f} ms of the service's processor each; load {os.getloadavg()[0]:.1f}, {settings}"
    )


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    with start_servers(workers=1, fast=False) as servers:
        for _ in range(3):
            asyncio.run(measure(servers, count))


if __name__ == "__main__":
    main()
