"""Usage events counted a second, in batches of a thousand over HTTP: `make bench-ingest`.

Four batches under way at once, events of 500 users, every tenth batch sent twice; an answer comes after the commit that
claimed the events' names, wrote the ledger and moved the counters. Commits reach the disk (fsync). `metering_ingest`
beside this is the same in more detail.
"""

import os
import random
from collections.abc import Iterator
from datetime import datetime
from typing import Final

import uvloop

from bench.frame import CPU, LATENCIES, OURS, PER_S, RSS, Contender, Figures, Report, alternate, at_least
from bench.load import as_bytes, closed_loop
from bench.metering_ingest import BATCH, USERS, a_batch
from bench.processes import spent
from bench.report import publish
from bench.service_process import service
from libs.common import service_tokens
from libs.common.ids import new_id
from services.metering.settings import Settings
from tests.harness.database import TestDatabase, new_database
from tests.harness.servers import Servers, start_servers
from tests.harness.services import SERVICE_TOKEN_SECRET, Place

AT_ONCE: Final = 4
BATCHES: Final = int(float(os.environ.get("BENCH_SCALE", "1")) * 80)


def requests(users: list[str], count: int, now: datetime) -> Iterator[bytes]:
    chance = random.Random(count)  # noqa: S311 - no secret
    token = service_tokens.mint(
        SERVICE_TOKEN_SECRET, issuer="gateway", audience="metering", user={"role": "service_role"}
    )
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/cloudevents-batch+json"}
    for number in range(count):
        batch = a_batch(chance, users, now)
        request = as_bytes("POST", "/internal/usage/events", headers=headers, body=batch)
        yield request
        if number % 10 == 0:
            yield request


async def load(database: TestDatabase, url: str, pid: int, count: int) -> Figures:
    users = [str(new_id()) for _ in range(USERS)]
    await database.execute(
        """
        INSERT INTO metering.entitlements (user_id, version, tier, status)
        SELECT user_id, 1, 'pro', 'active' FROM unnest($1::text[]) AS named(user_id)
        """,
        users,
    )
    batches = list(requests(users, count, await database.fetchval("SELECT now()")))
    before = spent(pid)
    outcome = await closed_loop(url, iter(batches), connections=AT_ONCE, seconds=60)
    after = spent(pid)
    outcome.require(200)
    events = len(batches) * BATCH
    counted = await database.fetchval("SELECT sum(metric_value) FROM usage_metrics WHERE user_id = ANY($1)", users)
    booked = await database.fetchval("SELECT sum(amount) FROM metering.usage_ledger WHERE user_id = ANY($1)", users)
    if counted != booked:
        raise RuntimeError(f"counters say {counted}, the ledger {booked}")
    return {
        **outcome.figures(),
        "per_s": events / outcome.took_s,
        "cpu_s_per_1000": (after.cpu_s - before.cpu_s) / events * 1000,
        "rss_mb": after.rss_mb,
    }


async def compare(servers: Servers) -> Report:
    async with new_database(servers) as database:
        place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
        settings = place.settings_for(Settings, "metering", log_level="INFO")
        async with service("metering", settings) as (url, pid):
            ours = Contender(
                name=OURS,
                measure=lambda: load(database, url, pid, BATCHES),
                warm_up=lambda: load(database, url, pid, 10),
            )
            results = await alternate([ours])
    return Report(
        name="ingest",
        title="Ingest: usage events in batches of a thousand",
        how=f"{AT_ONCE} batches at once of {BATCH:,} CloudEvents of {USERS} users, a tenth of them repeated, counted "
        "once each; latency is a batch's. Counters and ledger are compared after every round.",
        columns=[PER_S, *LATENCIES, CPU, RSS],
        results=results,
        targets=[at_least("at least 20,000 events a second", results.median(OURS, "per_s"), 20_000, digits=0)],
    )


def main() -> None:
    with start_servers(workers=1, fast=False) as servers:
        publish(uvloop.run(compare(servers)))


if __name__ == "__main__":
    main()
