"""Reservations a second, in process beside bare conditional updates, and over HTTP: `make bench-holds`.

Bare is 128 asks in one transaction that counts and does nothing else, on two connections: as most would write it, a
conditional UPDATE for each user among them, sent at once by the driver; and as one statement for all, than which
PostgreSQL has nothing cheaper. Ours also writes each hold's row, knows plans, grants and repeated ids, and tells each
ask its own verdict. Commits reach the disk (fsync). `metering_reservations` beside this measures how long one takes at
a calm rate.
"""

import asyncio
import itertools
import os
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

import asyncpg
import orjson
import uvloop

from bench.frame import OURS, PER_S, Column, Contender, Figures, Report, alternate, at_least
from bench.load import as_bytes, closed_loop
from bench.processes import spent
from bench.report import publish
from bench.service_process import service
from libs.common import database as db
from libs.common.ids import new_id
from libs.common.plans import load_plans
from services.metering.desk import HoldDesk
from services.metering.domain import Ask
from services.metering.settings import Settings
from tests.harness.database import TestDatabase, new_database
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place, service_headers

USERS: Final = [UUID(int=number + 1) for number in range(1_000)]
SECONDS: Final = float(os.environ.get("BENCH_SECONDS", "3"))
AT_ONCE: Final = 512
BATCH: Final = 128
CONNECTIONS: Final = 32
BARE: Final = "bare conditional UPDATEs, one a user"
AT_ONCE_BARE: Final = "one bare UPDATE for all"
HTTP: Final = f"{OURS}, over HTTP"
ONE_USER: Final = Column(name="one_user_per_s", title="for one user, a second")
P50: Final = Column(name="p50_ms", title="p50 ms", digits=1)
P99: Final = Column(name="p99_ms", title="p99 ms", digits=1)
CPU: Final = Column(name="cpu_s_per_1000", title="CPU s per 1,000", digits=3)


async def prepare(database: TestDatabase) -> None:
    """Users of the largest plan with a bound, and the bare table."""
    await database.execute(
        """
        INSERT INTO metering.entitlements (user_id, version, tier, status)
        SELECT user_id, 1, 'pro+', 'active' FROM unnest($1::text[]) AS named(user_id)
        """,
        [str(user_id) for user_id in USERS],
    )
    await database.execute(
        "CREATE TABLE peer_counters (user_id text PRIMARY KEY, used bigint, held bigint, ceiling bigint) "
        "WITH (fillfactor = 70)"
    )
    await database.execute(
        "INSERT INTO peer_counters SELECT user_id, 0, 0, 1000000000 FROM unnest($1::text[]) AS named(user_id)",
        [str(user_id) for user_id in USERS],
    )
    # Not the empty tables: as analyzed they are small for the planner until they are analyzed again, however they grow.
    await database.execute("ANALYZE metering.entitlements, peer_counters")


async def by_desk(desk: HoldDesk, users: Sequence[UUID]) -> float:
    """Grants a second."""
    turn, granted = itertools.cycle(users), 0
    started = time.perf_counter()

    async def ask() -> None:
        nonlocal granted
        while time.perf_counter() - started < SECONDS:
            await desk.reserve(Ask(hold_id=new_id(), user_id=str(next(turn)), amounts={"tokens": 1}))
            granted += 1

    await asyncio.gather(*(ask() for _ in range(AT_ONCE)))
    return granted / (time.perf_counter() - started)


Counting = Callable[["asyncpg.Connection[asyncpg.Record]", Sequence[str]], Awaitable[None]]


async def count_by_user(conn: "asyncpg.Connection[asyncpg.Record]", asked: Sequence[str]) -> None:
    await conn.executemany(
        "UPDATE peer_counters SET held = held + $2 WHERE user_id = $1 AND used + held + $2 <= ceiling",
        sorted(Counter(asked).items()),
    )


async def count_at_once(conn: "asyncpg.Connection[asyncpg.Record]", asked: Sequence[str]) -> None:
    await conn.execute(
        """
        UPDATE peer_counters AS counter SET held = held + asked.amount
        FROM (
            SELECT user_id, count(*) AS amount FROM unnest($1::text[]) AS ask(user_id)
            GROUP BY user_id ORDER BY user_id
        ) AS asked
        WHERE counter.user_id = asked.user_id AND used + held + asked.amount <= ceiling
        """,
        asked,
    )


async def by_updates(
    conns: Sequence["asyncpg.Connection[asyncpg.Record]"], users: Sequence[UUID], count: Counting
) -> float:
    turn, granted = itertools.cycle(users), 0
    started = time.perf_counter()

    async def work(conn: "asyncpg.Connection[asyncpg.Record]") -> None:
        nonlocal granted
        while time.perf_counter() - started < SECONDS:
            asked = sorted(str(next(turn)) for _ in range(BATCH))
            async with conn.transaction():
                await count(conn, asked)
            granted += BATCH

    await asyncio.gather(*(work(conn) for conn in conns))
    return granted / (time.perf_counter() - started)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    desk: HoldDesk
    conns: Sequence["asyncpg.Connection[asyncpg.Record]"]
    url: str
    pid: int

    async def ours(self) -> Figures:
        return {
            "per_s": await by_desk(self.desk, USERS),
            "one_user_per_s": await by_desk(self.desk, USERS[:1]),
        }

    async def bare(self, count: Counting) -> Figures:
        return {
            "per_s": await by_updates(self.conns, USERS, count),
            # Two connections would only wait for each other's lock of the one row.
            "one_user_per_s": await by_updates(self.conns[:1], USERS[:1], count),
        }

    async def over_http(self) -> Figures:
        asks, before = requests(), spent(self.pid)
        outcome = await closed_loop(self.url, asks, connections=CONNECTIONS, seconds=SECONDS)
        outcome.require(201)
        used_s = spent(self.pid).cpu_s - before.cpu_s
        return {**outcome.figures(), "cpu_s_per_1000": used_s / len(outcome.waits_ms) * 1000}


def requests() -> Iterator[bytes]:
    headers = [
        {**service_headers("metering", user_id=user_id), "Content-Type": "application/json"} for user_id in USERS[:100]
    ]
    for number in itertools.count():
        body = orjson.dumps({"hold_id": str(new_id()), "amounts": {"tokens": 1}})
        yield as_bytes("POST", "/internal/holds", headers=headers[number % 100], body=body)


@asynccontextmanager
async def contest(servers: Servers) -> AsyncGenerator[Contest, None]:
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(new_database(servers))
        await prepare(database)
        place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
        settings = place.settings_for(Settings, "metering", log_level="INFO")
        url, pid = await stack.enter_async_context(service("metering", settings))
        own = await stack.enter_async_context(
            db.connect(database.url("venture_metering"), application_name="bench-holds")
        )
        conns = [await asyncpg.connect(database.superuser_url) for _ in range(2)]
        for conn in conns:
            stack.push_async_callback(conn.close)
        yield Contest(desk=HoldDesk(own, load_plans()), conns=conns, url=url, pid=pid)


async def compare(servers: Servers) -> Report:
    async with contest(servers) as it:
        results = await alternate(
            [
                Contender(name=OURS, measure=it.ours, warm_up=it.ours),
                *(
                    Contender(name=name, measure=partial(it.bare, count), warm_up=partial(it.bare, count))
                    for name, count in ((BARE, count_by_user), (AT_ONCE_BARE, count_at_once))
                ),
                Contender(name=HTTP, measure=it.over_http, warm_up=it.over_http),
            ]
        )
    return Report(
        name="holds",
        title="Holds: reservations against a limit",
        how=f"Over 1,000 users and for one, {AT_ONCE} asks under way at once, {SECONDS:.0f} s a round, commits to a "
        f"disk with fsync; over HTTP {CONNECTIONS} connections to one process.",
        columns=[PER_S, ONE_USER, P50, P99, CPU],
        results=results,
        targets=[
            at_least("in process at least 70 % of bare, 1,000 users", results.ratio("per_s", to=BARE), 0.7),
            at_least("in process at least 70 % of bare, one user", results.ratio("one_user_per_s", to=BARE), 0.7),
            at_least("of one statement for all, 1,000 users", results.ratio("per_s", to=AT_ONCE_BARE), 0.7),
            at_least("over HTTP at least 3,000 a second", results.median(HTTP, "per_s"), 3_000, digits=0),
        ],
    )


def main() -> None:
    with start_servers(workers=1, fast=False) as servers:
        publish(uvloop.run(compare(servers)))


if __name__ == "__main__":
    main()
