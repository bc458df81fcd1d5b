"""Crowds at metering: ten thousand asks at once overshoot no limit; a thousand orders of events come to the same."""

import asyncio
import random
import secrets
import statistics
import time
from contextlib import AsyncExitStack
from typing import Any, Final
from uuid import UUID

import pytest

from libs.common.database import Database
from libs.common.ids import new_id
from services.metering.desk import HoldDesk
from services.metering.ingest import domain
from services.metering.ingest.desk import IngestDesk
from services.metering.ingest.domain import Catalogue, Reporter
from services.metering.ingest.operations import ACCEPTED, DUPLICATE
from tests.harness.database import TestDatabase
from tests.harness.tasks import running
from tests.integration.metering.accounts import PLANS, counters, has_no_drift, metering_of, plans_with
from tests.integration.metering.test_holds import Overshoot, granted
from tests.integration.metering.test_ingest import a_history

USERS: Final = 200
ASKS: Final = 50
LIMIT: Final = 20
REPLICAS: Final = 3
ORDERS: Final = 1_000
LANES: Final = 8


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    seed = request.config.getoption("--seed") or secrets.randbelow(1_000_000)
    print(f"seed {seed}")
    return random.Random(seed)  # noqa: S311 - a schedule to repeat


async def test_fifty_asks_each_of_two_hundred_users_at_once_grant_exactly_their_limits(
    test_database: TestDatabase, chance: random.Random
) -> None:
    plans = plans_with(runs=LIMIT, tokens=10**9)
    asks = [user_id for user_id in (new_id() for _ in range(USERS)) for _ in range(ASKS)]
    chance.shuffle(asks)
    took_s: list[float] = []
    overshoot = Overshoot(test_database, LIMIT)

    async def ask(desk: HoldDesk, user_id: UUID) -> bool:
        started = time.perf_counter()
        answer = await granted(desk, user_id, {"runs": 1, "tokens": 10})
        took_s.append(time.perf_counter() - started)
        return answer

    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(metering_of(test_database)) for _ in range(REPLICAS)]
        desks = [HoldDesk(database, plans) for database in databases]
        async with running(overshoot.watch):
            answers = await asyncio.gather(*(ask(desks[n % REPLICAS], user_id) for n, user_id in enumerate(asks)))
    cuts = statistics.quantiles(took_s, n=100)
    print(
        f"{len(asks)} asks of {USERS} users: {sum(answers)} granted, overshoot {overshoot.worst} in "
        f"{overshoot.samples} samples, p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s, {len(asks) / max(took_s):.0f}/s"
    )
    assert sum(answers) == USERS * LIMIT
    assert overshoot.worst == 0
    assert overshoot.samples
    held = await test_database.fetch("SELECT held_value FROM usage_metrics WHERE metric_type = 'runs'")
    assert [row["held_value"] for row in held] == [LIMIT] * USERS
    assert await has_no_drift(test_database)


class Shuffler:
    """Tells one history to a user in an order and in batches nobody has chosen."""

    def __init__(self, database: Database, history: list[dict[str, Any]], chance: random.Random) -> None:
        self._desk = IngestDesk(database, PLANS)
        self._history = history
        self._chance = chance
        self._catalogue = Catalogue(PLANS)

    async def tell(self, user_id: UUID) -> None:
        mine = [
            {**one, "source": str(user_id), "data": {**one["data"], "user_id": str(user_id)}} for one in self._history
        ]
        self._chance.shuffle(mine)
        events = [domain.read_event(one, Reporter(user_id=None), self._catalogue) for one in mine]
        size = self._chance.randint(1, len(events))
        for start in range(0, len(events), size):
            assert {*await self._desk.count(events[start : start + size])} <= {ACCEPTED, DUPLICATE}


async def test_a_thousand_orders_of_the_same_events_come_to_the_same(
    test_database: TestDatabase, chance: random.Random
) -> None:
    at = await test_database.fetchval("SELECT now()")
    history = a_history(UUID(int=1), at, chance)
    users = [new_id() for _ in range(ORDERS)]
    waiting = iter(users)
    started = time.perf_counter()

    async with metering_of(test_database) as database:

        async def lane() -> None:
            shuffler = Shuffler(database, history, chance)
            for user_id in waiting:
                await shuffler.tell(user_id)

        await asyncio.gather(*(lane() for _ in range(LANES)))
    outcomes = {str(sorted((await counters(test_database, user_id)).items())) for user_id in users}
    print(f"{ORDERS} orders of {len(history)} events in {time.perf_counter() - started:.0f} s: {len(outcomes)} outcome")
    assert len(outcomes) == 1, outcomes
    assert await has_no_drift(test_database)
    assert await test_database.fetchval("SELECT count(DISTINCT key) FROM metering.booked_events") == 48 * ORDERS
