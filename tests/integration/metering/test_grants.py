"""Credits beyond the plan: exactly as much more, used in a fixed order, given back in the reverse one."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from libs.common.database import Database
from libs.common.errors import Invalid
from libs.common.ids import new_id
from services.metering.domain import Hold, Metric, QuotaExceeded
from services.metering.grants import operations as grants
from services.metering.grants.domain import GrantConflict
from services.metering.repairs import operations as repairs
from tests.harness.database import TestDatabase
from tests.integration.metering.accounts import (
    PLANS,
    a_finished_run,
    counters,
    finish,
    has_no_drift,
    metering_of,
    plans_with,
    reserve,
    set_tier,
)
from tests.integration.metering.conftest import Door

LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)
PLAN = plans_with(runs=2, tokens=10**9)


async def grant(database: Database, user_id: UUID, amount: int, **facts: Any) -> UUID:
    values: dict[str, Any] = {
        "grant_id": new_id(),
        "metric": "runs",
        "priority": 100,
        "expires_at": None,
        "reason": "goodwill",
        "granted_by": "ada",
        **facts,
    }
    async with database.transaction() as conn:
        await grants.add_grant(conn, user_id=user_id, amount=amount, **values)
    return values["grant_id"]


async def run_once(database: Database, user_id: UUID) -> Hold:
    hold = await reserve(database, user_id, plans=PLAN)
    await finish(database, a_finished_run(user_id, hold.id), plans=PLAN)
    return hold


async def used_of(test_database: TestDatabase) -> dict[UUID, int]:
    return {
        row["id"]: row["used_amount"]
        for row in await test_database.fetch("SELECT id, used_amount FROM metering.grants")
    }


async def test_a_grant_adds_exactly_its_amount_to_the_plan(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        grant_id = await grant(database, user_id, 3)
        answers = await asyncio.gather(*(run_once(database, user_id) for _ in range(9)), return_exceptions=True)
        assert sum(1 for answer in answers if isinstance(answer, Hold)) == 5
        refusal = next(answer for answer in answers if isinstance(answer, QuotaExceeded))
        assert refusal.limit == 5
    assert await used_of(test_database) == {grant_id: 3}
    assert await counters(test_database, user_id) == {"runs": (5, 0), "tokens": (3_500, 0)}
    assert await has_no_drift(test_database)


async def test_the_plan_is_used_first_then_grants_by_priority_expiry_and_age(test_database: TestDatabase) -> None:
    user_id = new_id()
    soon = await test_database.fetchval("SELECT now() + interval '1 day'")
    async with metering_of(test_database) as database:
        lasting = await grant(database, user_id, 1)
        expiring = await grant(database, user_id, 1, expires_at=soon)
        later = await grant(database, user_id, 1, expires_at=soon + timedelta(days=1))
        first = await grant(database, user_id, 1, priority=1)
        order: list[UUID] = []
        for _ in range(6):
            before = await used_of(test_database)
            await run_once(database, user_id)
            after = await used_of(test_database)
            order += [grant_id for grant_id, used in after.items() if used > before[grant_id]]
    assert order == [first, expiring, later, lasting]


async def test_what_a_refund_gives_back_goes_to_the_grant_used_last(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        first = await grant(database, user_id, 1, priority=1)
        second = await grant(database, user_id, 2, priority=2)
        holds = [await run_once(database, user_id) for _ in range(5)]
        assert await used_of(test_database) == {first: 1, second: 2}
        for hold, left in ((holds[0], {first: 1, second: 1}), (holds[4], {first: 1, second: 0})):
            async with database.transaction() as conn:
                await repairs.refund_run(conn, PLAN, run_id=hold.id, by="ada", reason="sorry")
            assert await used_of(test_database) == left
        await run_once(database, user_id)
        await run_once(database, user_id)
        with pytest.raises(QuotaExceeded):
            await reserve(database, user_id, plans=PLAN)
    assert await has_no_drift(test_database)


async def test_an_expired_or_voided_grant_adds_nothing_but_keeps_what_it_promised(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        grant_id = await grant(database, user_id, 2)
        for _ in range(2):
            await run_once(database, user_id)
        promised = await reserve(database, user_id, plans=PLAN)
        await test_database.execute(
            "UPDATE metering.grants SET starts_at = now() - interval '2 h', expires_at = clock_timestamp()"
        )
        with pytest.raises(QuotaExceeded):
            await reserve(database, user_id, plans=PLAN)
        await finish(database, a_finished_run(user_id, promised.id), plans=PLAN)
        assert await used_of(test_database) == {grant_id: 1}
        await test_database.execute("UPDATE metering.grants SET expires_at = 'infinity'")
        async with database.transaction() as conn:
            await grants.void_grant(conn, grant_id)
        with pytest.raises(QuotaExceeded):
            await reserve(database, user_id, plans=PLAN)


async def test_a_smaller_plan_spends_no_credit_on_what_was_used_under_the_larger(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        await set_tier(database, user_id, "pro")
        for _ in range(5):
            await run_once(database, user_id)
        grant_id = await grant(database, user_id, 1)
        await set_tier(database, user_id, "free", version=3)
        await run_once(database, user_id)  # what is above the limit is past; the credit is good for one more
        assert await used_of(test_database) == {grant_id: 1}
        with pytest.raises(QuotaExceeded):
            await reserve(database, user_id, plans=PLAN)


async def test_credits_promised_to_last_months_holds_are_not_promised_again(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        grant_id = await grant(database, user_id, 1)
        late = [await reserve(database, user_id, plans=PLAN) for _ in range(3)]
        for table in ("usage_metrics", "metering.holds"):
            await test_database.execute(
                f"UPDATE {table} SET period_start = period_start - interval '1 month', period_end = period_start"  # noqa: S608
            )
        for _ in range(2):
            await run_once(database, user_id)
        with pytest.raises(QuotaExceeded):
            await reserve(database, user_id, plans=PLAN)
        for hold in late:
            await finish(database, a_finished_run(user_id, hold.id), plans=PLAN)
    assert await used_of(test_database) == {grant_id: 1}
    assert await has_no_drift(test_database)


async def test_a_grant_asked_for_twice_is_one_and_another_under_its_id_is_refused(test_database: TestDatabase) -> None:
    user_id, grant_id = new_id(), new_id()
    async with metering_of(test_database) as database:
        for _ in range(2):
            await grant(database, user_id, 3, grant_id=grant_id)
        with pytest.raises(GrantConflict):
            await grant(database, user_id, 4, grant_id=grant_id)
        with pytest.raises(GrantConflict):
            await grant(database, user_id, 3, grant_id=grant_id, expires_at=LONG_AGO)
        with pytest.raises(Invalid, match="expired"):
            await grant(database, user_id, 3, expires_at=LONG_AGO)
    assert await test_database.fetchval("SELECT sum(amount)::int FROM metering.grants") == 3


async def test_operators_grant_and_void_and_users_see_it(door: Door, user_id: UUID) -> None:
    body = {"metric": "runs", "amount": 10, "reason": "for your patience"}
    made = await door.as_operator("POST", f"/users/{user_id}/grants", json=body, status=201)
    usage = await door.as_user(user_id, "GET", "/internal/usage")
    assert usage["metrics"]["runs"]["limit"] == PLANS.tier("free").limits[Metric.RUNS] + 10
    (seen,) = (await door.as_user(user_id, "GET", "/internal/entitlements"))["grants"]
    assert (seen["id"], seen["left"], seen["reason"]) == (made["id"], 10, "for your patience")
    await door.as_operator("DELETE", f"/grants/{made['id']}", status=204)
    assert (await door.as_operator("GET", f"/users/{user_id}/grants"))["items"][0]["left"] == 0
    usage = await door.as_user(user_id, "GET", "/internal/usage")
    assert usage["metrics"]["runs"]["limit"] == PLANS.tier("free").limits[Metric.RUNS]
    await door.as_operator("DELETE", f"/grants/{new_id()}", status=404)
    refused = await door.as_operator(
        "POST", f"/users/{user_id}/grants", json={**body, "metric": "storage_bytes"}, status=422
    )
    assert refused["code"] == "metering.unknown_metric"
