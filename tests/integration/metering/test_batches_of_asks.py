"""What is said of many asks is sent once: each still gets its own amounts, its own period and its own ceiling."""

import random
from collections.abc import Callable, Coroutine, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from libs.common.clock import system_clock
from libs.common.database import Database
from libs.common.errors import VentureError
from libs.common.events.gateway import EntitlementsChanged
from libs.common.ids import new_id
from libs.common.plans import Plans
from services.metering import consumers, operations
from services.metering.columns import joined
from services.metering.desk import HoldDesk
from services.metering.domain import Amounts, Ask, Hold, QuotaExceeded
from tests.harness.database import TestDatabase
from tests.integration.metering.accounts import counters, has_no_drift, metering_of, plans_with

HOLDS = """
SELECT id, user_id, amounts, confirmed_at, created_at, expires_at, period_start, period_end FROM metering.holds
"""
FREE = plans_with(runs=3, tokens=1_000)
PRO = FREE.tier("pro").model_copy(update={"period": "subscription"})
PLAN = FREE.model_copy(update={"tiers": {**FREE.tiers, "pro": PRO}})

Way = Callable[[Database, Sequence[Ask]], Coroutine[Any, Any, Sequence[Hold | BaseException]]]


async def by_desk(database: Database, asks: Sequence[Ask], plans: Plans = PLAN) -> Sequence[Hold | BaseException]:
    return await HoldDesk(database, plans).reserve_many(asks)


async def by_transaction(database: Database, asks: Sequence[Ask], plans: Plans = PLAN) -> Sequence[Hold | VentureError]:
    async with database.transaction() as conn:
        return await operations.reserve_many(conn, plans, asks)


async def a_user(database: Database, tier: str, *, runs: int | None = 0, months_own: bool = False) -> UUID:
    """With another limit of runs than the plan's, unless 0; None is unlimited. `months_own` begin at an odd instant."""
    user_id, now = new_id(), system_clock()
    async with database.transaction() as conn:
        event = EntitlementsChanged(
            user_id=user_id,
            version=2,
            tier=tier,
            status="active",
            features={} if runs == 0 else {"limits": {"runs": runs}},
            period_start=now - timedelta(days=11, seconds=7) if months_own else None,
            period_end=now + timedelta(days=19) if months_own else None,
        )
        await consumers.on_entitlements_changed(event, conn)
    return user_id


@pytest.mark.parametrize("way", [by_desk, by_transaction])
async def test_each_is_held_to_the_ceiling_of_its_own(test_database: TestDatabase, way: Way) -> None:
    async with metering_of(test_database) as database:
        limits = {
            await a_user(database, "free"): 3,
            await a_user(database, "free", runs=2): 2,
            await a_user(database, "free", runs=7): 7,
            await a_user(database, "pro", runs=1): 1,
            await a_user(database, "pro", runs=None): None,
        }
        users = [user_id for user_id, limit in limits.items() for _ in range(9 if limit is None else limit)]
        random.Random(3).shuffle(users)  # noqa: S311 - an order to repeat
        asks = [Ask(hold_id=new_id(), user_id=str(user_id), amounts={"runs": 1}) for user_id in users]
        assert all(isinstance(verdict, Hold) for verdict in await way(database, asks))
        more = [Ask(hold_id=new_id(), user_id=str(user_id), amounts={"runs": 1}) for user_id in limits]
        verdicts = dict(zip(limits, await way(database, more), strict=True))
    for user_id, limit in limits.items():
        verdict = verdicts[user_id]
        assert isinstance(verdict, Hold) if limit is None else isinstance(verdict, QuotaExceeded)
        assert limit is None or (isinstance(verdict, QuotaExceeded) and verdict.limit == limit)
        assert await counters(test_database, user_id) == {"runs": (0, 10 if limit is None else limit)}
    assert await has_no_drift(test_database)


@pytest.mark.parametrize("way", [by_desk, by_transaction])
async def test_each_is_written_down_as_it_was_asked(test_database: TestDatabase, way: Way) -> None:
    amounts: Sequence[Amounts] = [{"runs": 1}, {"tokens": 5}, {"tokens": 6}, {"tokens": 5, "runs": 1}]
    async with metering_of(test_database) as database:
        plain, own = await a_user(database, "pro"), await a_user(database, "pro", months_own=True)
        asks = [
            Ask(hold_id=new_id(), user_id=str(user_id), amounts=amount, is_confirmed=is_confirmed)
            for user_id in (plain, own)
            for amount in amounts
            for is_confirmed in (True, False)
        ]
        random.Random(5).shuffle(asks)  # noqa: S311 - an order to repeat
        verdicts = await way(database, asks)
    rows = {row["id"]: row for row in await test_database.fetch(HOLDS)}
    periods: set[tuple[datetime, datetime]] = set()
    for ask, verdict in zip(asks, verdicts, strict=True):
        row = rows.pop(ask.hold_id)
        assert isinstance(verdict, Hold)
        assert (row["user_id"], row["amounts"]) == (ask.user_id, dict(ask.amounts))
        assert (row["confirmed_at"] is not None) == ask.is_confirmed
        assert row["expires_at"] - row["created_at"] == (
            timedelta(days=1) if ask.is_confirmed else timedelta(minutes=1)
        )
        assert (row["period_start"], row["period_end"]) == (verdict.period.start, verdict.period.end)
        assert (verdict.created_at, verdict.expires_at) == (row["created_at"], row["expires_at"])
        assert (verdict.id, verdict.user_id, verdict.amounts, verdict.is_confirmed, verdict.is_booked) == (
            ask.hold_id,
            ask.user_id,
            ask.amounts,
            ask.is_confirmed,
            False,
        )
        assert row["period_start"] <= row["created_at"] < row["period_end"]
        periods.add(verdict.period)
    assert not rows
    assert len(periods) == 2
    assert await has_no_drift(test_database)


def test_names_of_which_one_would_be_taken_for_two_are_not_sent() -> None:
    assert joined([]) == ""
    assert joined(["a", "b"]) == "a,b"
    for names in (["a,b"], ["a", "b,"], [",", ""]):
        with pytest.raises(ValueError, match="comma"):
            joined(names)
