"""Periods by the database's clock: calendar months, a subscription's own months, and everybody's at one instant."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from libs.common.database import Database
from libs.common.events.gateway import EntitlementsChanged
from libs.common.ids import new_id
from libs.common.plans import Plans
from services.metering.accounts import operations as accounts
from services.metering.desk import HoldDesk
from services.metering.domain import Ask, Hold, QuotaExceeded
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.integration.metering.accounts import PLANS, a_finished_run, finish, has_no_drift, metering_of, reserve

PRO = PLANS.tier("pro").model_copy(update={"period": "subscription", "limits": {"runs": 2}})
BY_SUBSCRIPTION: Plans = PLANS.model_copy(update={"tiers": {**PLANS.tiers, "pro": PRO}})


async def subscribe(database: Database, user_id: UUID, *, start: datetime, end: datetime, version: int = 2) -> None:
    async with database.transaction() as conn:
        event = EntitlementsChanged(
            user_id=user_id, version=version, tier="pro", status="active", period_start=start, period_end=end
        )
        await accounts.change_entitlements(conn, event)


@pytest.mark.parametrize(
    ("at", "anchor", "start", "end"),
    [
        ("2026-11-30T23:59:59.999999", None, "2026-11-01", "2026-12-01"),
        ("2026-12-01", None, "2026-12-01", "2027-01-01"),
        ("2026-12-10", ("2026-11-15", "2026-12-15"), "2026-11-15", "2026-12-15"),
        ("2026-12-15", ("2026-11-15", "2026-12-15"), "2026-12-15", "2027-01-15"),
        ("2026-11-14", ("2026-11-15", "2026-12-15"), "2026-10-15", "2026-11-15"),
        ("2026-03-30", ("2026-01-31", "2026-02-28"), "2026-02-28", "2026-03-31"),
        ("2026-03-31", ("2026-01-31", "2026-02-28"), "2026-03-31", "2026-04-30"),
        ("2028-02-29", ("2026-01-31", "2026-02-28"), "2028-02-29", "2028-03-31"),
        ("2026-12-10", ("2026-11-15", "2026-11-20"), "2026-11-20", "2026-12-20"),
        ("2026-07-05", ("2026-01-05", "2027-01-05"), "2026-07-05", "2026-08-05"),
    ],
)
async def test_a_period_is_the_calendars_or_the_subscriptions_month(
    test_database: TestDatabase, at: str, anchor: tuple[str, str] | None, start: str, end: str
) -> None:
    def utc(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=UTC)

    begins, ends = (utc(anchor[0]), utc(anchor[1])) if anchor else (None, None)
    (row,) = await test_database.fetch(
        "SELECT period_start, period_end FROM metering.period_at($1, $2, $3)", utc(at), begins, ends
    )
    assert (row["period_start"], row["period_end"]) == (utc(start), utc(end))


async def test_two_hundred_users_roll_over_in_the_same_instant_and_get_new_quota_once(
    test_database: TestDatabase,
) -> None:
    users = [new_id() for _ in range(200)]
    async with metering_of(test_database) as one, metering_of(test_database) as other:
        ends: datetime = await test_database.fetchval("SELECT now() + interval '3 s'")
        for user_id in users:
            await subscribe(one, user_id, start=ends - timedelta(days=30), end=ends)
        desks = [HoldDesk(database, BY_SUBSCRIPTION) for database in (one, other)]
        granted: Counter[tuple[UUID, datetime]] = Counter()

        async def ask(user_id: UUID, number: int) -> None:
            try:
                hold = await desks[number % 2].reserve(Ask(hold_id=new_id(), user_id=str(user_id), amounts={"runs": 1}))
            except QuotaExceeded:
                return
            granted[user_id, hold.period.start] += 1

        async def is_over() -> bool:
            await asyncio.gather(*(ask(user_id, number) for number, user_id in enumerate(users)))
            return await test_database.fetchval("SELECT now() > $1::timestamptz + interval '0.5 s'", ends)

        await eventually(is_over, within_s=20)
        await asyncio.gather(*(ask(user_id, number) for number in range(3) for user_id in users))
    assert granted == Counter({(user_id, at): 2 for user_id in users for at in (ends - timedelta(days=30), ends)})
    assert await has_no_drift(test_database)


async def test_a_run_is_booked_in_the_period_it_was_accepted_in_and_history_keeps_its_periods(
    test_database: TestDatabase,
) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        now: datetime = await test_database.fetchval("SELECT now()")
        await subscribe(database, user_id, start=now - timedelta(days=30), end=now + timedelta(seconds=1))
        holds = [await reserve(database, user_id, amounts={"runs": 1}, plans=BY_SUBSCRIPTION) for _ in range(2)]
        await finish(database, a_finished_run(user_id, holds[0].id), plans=BY_SUBSCRIPTION)

        async def has_rolled_over() -> Hold | None:
            try:
                return await reserve(database, user_id, amounts={"runs": 1}, plans=BY_SUBSCRIPTION)
            except QuotaExceeded:
                return None

        fresh = await eventually(has_rolled_over)
        assert fresh is not None
        assert fresh.period.start == holds[0].period.end
        await finish(database, a_finished_run(user_id, holds[1].id), plans=BY_SUBSCRIPTION)
    rows = await test_database.fetch(
        "SELECT metric_value, held_value FROM usage_metrics WHERE metric_type = 'runs' ORDER BY period_start"
    )
    assert [tuple(row.values()) for row in rows] == [(2, 0), (0, 1)]
    assert await has_no_drift(test_database)
