"""Reservations a second, in process beside the same durable work and bare updates, and over HTTP: `make bench-holds`.

512 callers in one process, each with one ask under way, of whom a batch at most shares a commit that reaches the disk
(fsync). Ours is the desk of metering: plans, overrides, grants, features, periods, expiry, repeated ids, and asks that
fit only in part. The peers do the same durable work in the most direct way: the same callers, each with a verdict of
its own, the same batches and lanes, one row per hold under a unique id and conditional updates of the counters, and
nothing else; once in a transaction, as one writes it, and once as the least that PostgreSQL can be asked for, which a
repeated id would break (`bench.hold_peers` says what they leave out).

The bare ones are floors, not peers: a loop counts 128 asks and sends the sum, so there is nobody who asks, no hold and
no verdict. They are what updates of counters cost alone: as most would write it, in a transaction a conditional UPDATE
for each user among them, awaited one after the other; the same UPDATEs sent at once by the driver (`executemany`); and
one statement for all, than which PostgreSQL has nothing cheaper. For one user all three are one UPDATE, so that what
is counted a second is the size of a batch times the commits a second. The target was measured elsewhere, as 19,800 a
second over 1,000 users and 84,000 for one, 4.24 times as many. Updates awaited one after the other, 32 a transaction,
are in that proportion here; no other form or size tried (32, 64, 128, 256) comes near both. So they are shown, too.
`metering_reservations` beside this measures how long one takes at a calm rate.
"""

import itertools
import os
from collections.abc import AsyncGenerator, Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

import asyncpg
import orjson
import uvloop

from bench import hold_peers
from bench.frame import OURS, PER_S, Column, Contender, Figures, Report, alternate, at_least
from bench.hold_peers import (
    Counting,
    Direct,
    Holding,
    by_callers,
    by_updates,
    count_at_once,
    count_by_user,
    count_one_by_one,
    in_statement,
    in_transaction,
)
from bench.load import as_bytes, closed_loop
from bench.processes import spent
from bench.report import publish
from bench.service_process import service
from libs.common import database as db
from libs.common.ids import new_id
from libs.common.plans import load_plans
from libs.common.process import spare_the_collector
from libs.common.together import MOST
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
AS_IN_THE_TARGET: Final = 32
CONNECTIONS: Final = 32
DIRECT: Final = "rows of holds and counters in a transaction"
LEAST: Final = "the same in one statement, without repeated ids"
AWAITED: Final = "floor: bare conditional UPDATEs, one a user, awaited one after the other"
AWAITED_32: Final = f"the same, {AS_IN_THE_TARGET} instead of {BATCH} a transaction"
BARE: Final = "floor: bare conditional UPDATEs, one a user, sent at once by the driver"
AT_ONCE_BARE: Final = "floor: one bare UPDATE, one statement for all"
HTTP: Final = f"{OURS}, over HTTP"
ONE_USER: Final = Column(name="one_user_per_s", title="for one user, a second")
P50: Final = Column(name="p50_ms", title="p50 ms", digits=1)
P99: Final = Column(name="p99_ms", title="p99 ms", digits=1)
CPU: Final = Column(name="cpu_s_per_1000", title="CPU s per 1,000", digits=3)


async def prepare(database: TestDatabase) -> None:
    """Users of the largest plan with a bound, and the peers' tables."""
    await database.execute(
        """
        INSERT INTO metering.entitlements (user_id, version, tier, status)
        SELECT user_id, 1, 'pro+', 'active' FROM unnest($1::text[]) AS named(user_id)
        """,
        [str(user_id) for user_id in USERS],
    )
    # Not the empty table: as analyzed it is small for the planner until it is analyzed again, however it grows.
    await database.execute("ANALYZE metering.entitlements")
    await hold_peers.make_tables(database.superuser, USERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    desk: HoldDesk
    conns: Sequence["asyncpg.Connection[asyncpg.Record]"]
    url: str
    pid: int

    async def ours(self) -> Figures:
        def reserve(user_id: str) -> Awaitable[object]:
            return self.desk.reserve(Ask(hold_id=new_id(), user_id=user_id, amounts={"tokens": 1}))

        return {
            "per_s": await by_callers(reserve, USERS, at_once=AT_ONCE, seconds=SECONDS),
            "one_user_per_s": await by_callers(reserve, USERS[:1], at_once=AT_ONCE, seconds=SECONDS),
        }

    async def direct(self, hold: Holding) -> Figures:
        direct = Direct(self.conns, hold, most=MOST)

        def reserve(user_id: str) -> Awaitable[object]:
            return direct.ask(new_id(), user_id)

        return {
            "per_s": await by_callers(reserve, USERS, at_once=AT_ONCE, seconds=SECONDS),
            "one_user_per_s": await by_callers(reserve, USERS[:1], at_once=AT_ONCE, seconds=SECONDS),
        }

    async def bare(self, count: Counting, batch: int) -> Figures:
        return {
            "per_s": await by_updates(self.conns, USERS, count, batch=batch, seconds=SECONDS),
            # Two connections would only wait for each other's lock of the one row.
            "one_user_per_s": await by_updates(self.conns[:1], USERS[:1], count, batch=batch, seconds=SECONDS),
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
        spare_the_collector()  # as every process of a service does: for the peers, too
        yield Contest(desk=HoldDesk(own, load_plans()), conns=conns, url=url, pid=pid)


async def compare(servers: Servers) -> Report:
    async with contest(servers) as it:
        results = await alternate(
            [
                Contender(name=OURS, measure=it.ours, warm_up=it.ours),
                *(
                    Contender(name=name, measure=partial(it.direct, hold), warm_up=partial(it.direct, hold))
                    for name, hold in ((DIRECT, in_transaction), (LEAST, in_statement))
                ),
                *(
                    Contender(name=name, measure=partial(it.bare, count, batch), warm_up=partial(it.bare, count, batch))
                    for name, count, batch in (
                        (AWAITED, count_one_by_one, BATCH),
                        (AWAITED_32, count_one_by_one, AS_IN_THE_TARGET),
                        (BARE, count_by_user, BATCH),
                        (AT_ONCE_BARE, count_at_once, BATCH),
                    )
                ),
                Contender(name=HTTP, measure=it.over_http, warm_up=it.over_http),
            ]
        )
    return Report(
        name="holds",
        title="Holds: reservations against a limit",
        how=f"Over 1,000 users and for one, {AT_ONCE} asks under way at once, {SECONDS:g} s a round, commits to a "
        f"disk with fsync; over HTTP {CONNECTIONS} connections to one process.",
        columns=[PER_S, ONE_USER, P50, P99, CPU],
        results=results,
        targets=[
            *(
                at_least(f"at least 70 % of {named}, {users}", results.ratio(column, to=name), 0.7)
                for name, named in (
                    (DIRECT, "rows of holds and counters in a transaction"),
                    (LEAST, "the same in one statement"),
                    (AWAITED, "the floor of bare UPDATEs awaited one after the other"),
                    (AWAITED_32, f"the same with {AS_IN_THE_TARGET} a transaction"),
                    (BARE, "the floor of bare UPDATEs sent at once by the driver"),
                    (AT_ONCE_BARE, "the floor of one statement for all"),
                )
                for column, users in (("per_s", "1,000 users"), ("one_user_per_s", "one user"))
            ),
            at_least("over HTTP at least 3,000 a second", results.median(HTTP, "per_s"), 3_000, digits=0),
        ],
    )


def main() -> None:
    with start_servers(workers=1, fast=False) as servers:
        publish(uvloop.run(compare(servers)))


if __name__ == "__main__":
    main()
