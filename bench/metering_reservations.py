"""How long a reservation takes at 200 a second, without and with a history: `python -m bench.metering_reservations`.

First on an empty database, then with 10 million ledger rows and counters of 100,000 users (given as arguments: rows and
users). Asks come evenly spaced, whatever the answers take, from 4,000 of the users; the service runs in a process of
its own and shares the machine with this client and PostgreSQL. The client is one over bare sockets: httpx needs more of
a core for 200 asks a second than the service does, and what was measured with it (p50 120 ms) was its own queue.
"""

import itertools
import os
import random
import sys
import time
from collections.abc import Iterator
from typing import Final
from uuid import UUID

import orjson
import uvloop

from bench.load import as_bytes, at_rate
from bench.metering_service import cpu_s, database_pids, service_process
from libs.common.ids import new_id
from tests.harness.database import TestDatabase, new_database
from tests.harness.servers import Servers, start_servers
from tests.harness.services import service_headers

PER_S: Final = 200
SECONDS: Final = 20
WARM_UP_S: Final = 3
ASKERS: Final = 4_000


async def grow(database: TestDatabase, rows: int, users: int) -> None:
    """History by SQL: users have the ids 1 to n, every counter is the sum of its ledger rows.

    Indices are made after the rows, which is what makes ten million of them a matter of minutes.
    """
    await database.execute("SET maintenance_work_mem = '1GB'; SET work_mem = '256MB'; SET synchronous_commit = off")
    definition = await database.fetchval("SELECT pg_get_indexdef('metering.usage_ledger_user'::regclass)")
    await database.execute("DROP INDEX metering.usage_ledger_user")
    await database.execute("ALTER TABLE metering.booked_events DROP CONSTRAINT booked_events_pkey")
    await database.execute(
        """
        INSERT INTO metering.usage_ledger
            (source, event_id, user_id, metric_type, amount, kind, period_start, occurred_at, attributes)
        SELECT 'agents.run', n::text, lpad(to_hex(n % $2 + 1), 32, '0')::uuid::text, 'tokens', 1 + n % 7, 'usage',
            months.starts[1 + n % 3], months.starts[1 + n % 3] + (n % 600000) * interval '1 s', '{"model": "offline"}'
        FROM generate_series(1, $1::bigint) AS n,
            (SELECT array_agg(metering.period_start(now() - k * interval '30 days')) AS starts
             FROM generate_series(0, 2) AS k) AS months
        """,
        rows,
        users,
    )
    await database.execute(
        """
        INSERT INTO metering.booked_events (key, digest)
        SELECT substring(sha256(int8send(n)) FOR 16), substring(sha256(int8send(n)) FOR 16)
        FROM generate_series(1, $1::bigint) AS n
        """,
        rows,
    )
    await database.execute("ALTER TABLE metering.booked_events ADD PRIMARY KEY (key)")
    # As PostgreSQL tells it, it is of the parent alone: the months would have none.
    await database.execute(definition.replace(" ON ONLY ", " ON "))
    await database.execute(
        """
        INSERT INTO usage_metrics (user_id, metric_type, metric_value, period_start, period_end)
        SELECT user_id, metric_type, sum(amount), period_start, metering.period_end(period_start)
        FROM metering.usage_ledger GROUP BY user_id, metric_type, period_start
        """
    )
    await database.execute(
        """
        INSERT INTO metering.entitlements (user_id, version, tier, status)
        SELECT lpad(to_hex(n), 32, '0')::uuid::text, 1, 'pro', 'active' FROM generate_series(1, $1::bigint) AS n
        """,
        users,
    )
    await database.execute("VACUUM (ANALYZE)")
    await database.execute("CHECKPOINT")


def asks(users: int) -> Iterator[bytes]:
    """Each for another hold, by users taken at random; their tokens are signed beforehand."""
    chance = random.Random(1)  # noqa: S311 - the same users every time
    asking = [UUID(int=chance.randint(1, users)) for _ in range(ASKERS)]
    headers = [{**service_headers("metering", user_id=user), "Content-Type": "application/json"} for user in asking]
    for one in itertools.cycle(headers):
        body = orjson.dumps({"hold_id": str(new_id()), "amounts": {"runs": 1, "tokens": 100}})
        yield as_bytes("POST", "/internal/holds", headers=one, body=body)


async def measure(database: TestDatabase, servers: Servers, users: int, label: str) -> None:
    async with service_process(servers, database) as (url, pid):
        asked = asks(users)
        await at_rate(url, asked, per_s=PER_S, seconds=WARM_UP_S)
        backends = await database_pids(database)
        used_s = cpu_s([pid]), cpu_s(backends)
        outcome = await at_rate(url, asked, per_s=PER_S, seconds=SECONDS)
        outcome.require(201)
        backends = [one for one in await database_pids(database) if one in backends]
        used_s = cpu_s([pid]) - used_s[0], cpu_s(backends) - used_s[1]
    took, count = outcome.figures(), len(outcome.waits_ms)
    print(
        f"{label}: {count} asks at {PER_S}/s, "
        f"p50 {took['p50_ms']:.1f} ms, p95 {took['p95_ms']:.1f} ms, p99 {took['p99_ms']:.1f} ms; processor time an "
        f"ask: service {used_s[0] / count * 1e3:.2f} ms, PostgreSQL {used_s[1] / count * 1e3:.2f} ms; "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


async def run(servers: Servers, rows: int, users: int) -> None:
    async with new_database(servers) as database:
        await measure(database, servers, users, "empty")
    async with new_database(servers) as database:
        started = time.perf_counter()
        await grow(database, rows, users)
        print(f"a history of {rows} rows in {time.perf_counter() - started:.0f} s", flush=True)
        await measure(database, servers, users, f"{rows} ledger rows, {users} users")


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    users = int(sys.argv[2]) if len(sys.argv) > 2 else 100_000  # noqa: PLR2004
    with start_servers(workers=1, fast=False) as servers:
        uvloop.run(run(servers, rows, users))


if __name__ == "__main__":
    main()
