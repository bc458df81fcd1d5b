"""Signed deliveries of Stripe's a second, the row committed before the 200: `make bench-webhooks`.

The servers' disk is in earnest (fsync). Every delivery is a new event about one of a hundred subscriptions, as large as
such events are; a contender's answer counts when it is a 200, and its rows are counted afterwards. `webhook_ingest`
beside this measures the service alone, forged deliveries among the rest.
"""

import os
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import uvloop

from bench.frame import CPU, LATENCIES, OURS, PER_S, RSS, Contender, Figures, Report, alternate, at_least, at_most
from bench.load import as_bytes, closed_loop
from bench.peer_environments import PEERS, peer_python
from bench.processes import answering, running, spent
from bench.report import publish
from bench.service_process import service
from bench.webhook_ingest import SECRET, deliveries
from services.billing.settings import Settings
from tests.harness.database import TestDatabase, new_database
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place
from tests.harness.stripe_emulator import SECRET_KEY, free_port

CONNECTIONS: Final = 16
SCALE: Final = float(os.environ.get("BENCH_SCALE", "1"))
PLAIN: Final = "FastAPI and SQLAlchemy, plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    name: str
    url: str
    pid: int
    database: TestDatabase
    count_rows: str
    deliveries: int

    async def load(self, count: int) -> Figures:
        signed = list(requests(count))
        rows, before = await self.database.fetchval(self.count_rows), spent(self.pid)
        outcome = await closed_loop(self.url, iter(signed), connections=CONNECTIONS, seconds=60)
        after = spent(self.pid)
        outcome.require(200)
        stored = await self.database.fetchval(self.count_rows) - rows
        if stored != count:
            raise RuntimeError(f"{self.name} answered {count} deliveries and stored {stored}")
        cpu_s = after.cpu_s - before.cpu_s
        return {**outcome.figures(), "cpu_s_per_1000": cpu_s / count * 1000, "rss_mb": after.rss_mb}

    def contender(self) -> Contender:
        count = max(int(self.deliveries * SCALE), 200)
        return Contender(name=self.name, measure=lambda: self.load(count), warm_up=lambda: self.load(count // 4))


def requests(count: int) -> Iterator[bytes]:
    """Genuine deliveries; made before the clock runs."""
    left = count
    for delivery, is_forged in deliveries(count + count // 9 + 10):
        if is_forged or not left:
            continue
        left -= 1
        headers = {"Content-Type": "application/json", "Stripe-Signature": delivery.signature}
        yield as_bytes("POST", "/webhooks/stripe", headers=headers, body=delivery.payload)


@asynccontextmanager
async def ours(servers: Servers) -> AsyncGenerator[Endpoint, None]:
    async with new_database(servers) as database:
        place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
        settings = place.settings_for(
            Settings,
            "billing",
            stripe_secret_key=SECRET_KEY,
            stripe_webhook_secret=SECRET,
            stripe_api_base="http://127.0.0.1:9",
            frontend_url="https://app.example.com",
            log_level="INFO",
        )
        async with service("billing", settings) as (url, pid):
            yield Endpoint(
                name=OURS,
                url=url,
                pid=pid,
                database=database,
                count_rows="SELECT count(*) FROM billing.stripe_events",
                deliveries=12_000,
            )


@asynccontextmanager
async def plain(servers: Servers) -> AsyncGenerator[Endpoint, None]:
    async with new_database(servers) as database:
        await database.execute(
            """
            CREATE TABLE peer_stripe_events
                (id text PRIMARY KEY, type text NOT NULL, payload jsonb NOT NULL, received_at timestamp NOT NULL)
            """
        )
        port = free_port()
        environment = {
            "DATABASE_URL": database.superuser_url.replace("postgresql://", "postgresql+asyncpg://"),
            "WEBHOOK_SECRET": SECRET,
            "PORT": str(port),
        }
        command = (peer_python("fastapi_sqlalchemy"), PEERS / "fastapi_sqlalchemy" / "webhook.py")
        async with running(command, environment=environment, name="fastapi-sqlalchemy") as pid:
            url = f"http://127.0.0.1:{port}"
            await answering(url, pid)
            yield Endpoint(
                name=PLAIN,
                url=url,
                pid=pid,
                database=database,
                count_rows="SELECT count(*) FROM peer_stripe_events",
                deliveries=1_200,
            )


async def compare(servers: Servers) -> Report:
    async with ours(servers) as mine, plain(servers) as other:
        results = await alternate([mine.contender(), other.contender()])
    return Report(
        name="webhooks",
        title="Webhooks: signed deliveries, stored before they are acknowledged",
        how=f"{CONNECTIONS} connections, events of 4 kB, signature checked, one row committed to a disk with fsync "
        f"before the 200; one process each; load by a client over bare sockets.",
        columns=[PER_S, *LATENCIES, CPU, RSS],
        results=results,
        targets=[
            at_least("at least 2,000 a second", results.median(OURS, "per_s"), 2_000, digits=0),
            at_most("p99 below 25 ms", results.median(OURS, "p99_ms"), 25, digits=1, unit=" ms"),
        ],
        notes=[f"{results.ratio('per_s', to=PLAIN):.1f} times the plain endpoint"],
    )


def main() -> None:
    with start_servers(workers=1, fast=False) as servers:
        publish(uvloop.run(compare(servers)))


if __name__ == "__main__":
    main()
