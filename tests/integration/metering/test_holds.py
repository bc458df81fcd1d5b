"""Reservations: exact under any number of parallel asks, all or nothing, and repeatable by their id."""

import asyncio
from uuid import UUID

import pytest

from libs.common.database import Database, DatabaseUnavailable
from libs.common.ids import new_id
from services.metering import operations
from services.metering.domain import HoldConflict, HoldInUse, Metric, QuotaExceeded
from services.metering.jobs import sweep_holds
from tests.harness.database import TestDatabase
from tests.integration.metering.accounts import (
    a_finished_run,
    counters,
    expire_holds,
    finish,
    has_no_drift,
    metering_of,
    plans_with,
    reserve,
    set_tier,
)


async def confirm(database: Database, user_id: UUID, hold_id: UUID) -> bool:
    async with database.transaction() as conn:
        return await operations.confirm_hold(conn, hold_id=hold_id, user_id=user_id)


async def release(database: Database, user_id: UUID, hold_id: UUID) -> None:
    async with database.transaction() as conn:
        await operations.release_hold(conn, hold_id=hold_id, user_id=user_id)


async def test_a_thousand_parallel_asks_against_a_limit_of_a_hundred_grant_exactly_a_hundred(
    test_database: TestDatabase,
) -> None:
    user_id, plans = new_id(), plans_with(runs=100, tokens=10**9)

    async def ask(database: Database) -> bool:
        hold_id = new_id()
        while True:
            try:
                await reserve(database, user_id, hold_id=hold_id, plans=plans)
            except QuotaExceeded:
                return False
            except DatabaseUnavailable:  # what a client sees as 503 with Retry-After; the same ask is repeated
                continue
            return True

    async with metering_of(test_database) as database, asyncio.timeout(60):
        granted = await asyncio.gather(*(ask(database) for _ in range(1_000)))
    assert sum(granted) == 100
    assert await counters(test_database, user_id) == {"runs": (0, 100), "tokens": (0, 100_000)}
    assert await has_no_drift(test_database)


async def test_many_users_at_once_each_get_exactly_their_limit(test_database: TestDatabase) -> None:
    plans = plans_with(runs=3, tokens=10**9)
    users = [new_id() for _ in range(40)]

    async def ask(database: Database, user_id: UUID) -> None:
        try:
            await reserve(database, user_id, plans=plans)
        except (QuotaExceeded, DatabaseUnavailable):
            return

    async with metering_of(test_database) as database:
        await asyncio.gather(*(ask(database, user_id) for _ in range(10) for user_id in users))
    held = await test_database.fetch("SELECT held_value FROM usage_metrics WHERE metric_type = 'runs'")
    assert [row["held_value"] for row in held] == [3] * 40
    assert await has_no_drift(test_database)


async def test_a_hold_takes_all_its_amounts_or_none(test_database: TestDatabase) -> None:
    user_id, plans = new_id(), plans_with(runs=10, tokens=1_500)
    async with metering_of(test_database) as database:
        await reserve(database, user_id, plans=plans)
        with pytest.raises(QuotaExceeded) as refusal:
            await reserve(database, user_id, plans=plans)
    assert refusal.value.fields["metric"] == "tokens"
    assert refusal.value.fields["limit"] == 1_500
    assert refusal.value.fields["used"] == 0
    assert refusal.value.fields["held"] == 1_000
    assert refusal.value.retry_after_s == 60
    assert await counters(test_database, user_id) == {"runs": (0, 1), "tokens": (0, 1_000)}


async def test_an_ask_larger_than_the_limit_is_refused_before_there_is_a_counter(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        with pytest.raises(QuotaExceeded) as refusal:
            await reserve(database, user_id, amounts={Metric.TEMPLATES: 6})
    assert refusal.value.fields["limit"] == 5
    assert await counters(test_database, user_id) == {}


async def test_an_unlimited_metric_is_held_without_a_limit(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        await set_tier(database, user_id, "enterprise")
        await reserve(database, user_id, amounts={Metric.TOKENS: 10**12})
    assert await counters(test_database, user_id) == {"tokens": (0, 10**12)}


async def test_the_same_ask_again_has_the_same_answer_and_holds_once(test_database: TestDatabase) -> None:
    user_id, hold_id = new_id(), new_id()
    async with metering_of(test_database) as database:
        holds = await asyncio.gather(*(reserve(database, user_id, hold_id=hold_id) for _ in range(30)))
    assert len({(hold.id, hold.expires_at) for hold in holds}) == 1
    assert await counters(test_database, user_id) == {"runs": (0, 1), "tokens": (0, 1_000)}


async def test_another_ask_or_another_user_under_the_same_id_is_a_conflict(test_database: TestDatabase) -> None:
    user_id, hold_id = new_id(), new_id()
    async with metering_of(test_database) as database:
        await reserve(database, user_id, hold_id=hold_id)
        with pytest.raises(HoldConflict):
            await reserve(database, user_id, hold_id=hold_id, amounts={Metric.RUNS: 2})
        with pytest.raises(HoldConflict):
            await reserve(database, new_id(), hold_id=hold_id)


async def test_a_released_hold_gives_its_quota_back_once_and_can_be_taken_again(test_database: TestDatabase) -> None:
    user_id, hold_id = new_id(), new_id()
    async with metering_of(test_database) as database:
        await reserve(database, user_id)
        await reserve(database, user_id, hold_id=hold_id)
        await asyncio.gather(*(release(database, user_id, hold_id) for _ in range(10)))
        assert await counters(test_database, user_id) == {"runs": (0, 1), "tokens": (0, 1_000)}
        await reserve(database, user_id, hold_id=hold_id)
    assert await counters(test_database, user_id) == {"runs": (0, 2), "tokens": (0, 2_000)}
    assert await has_no_drift(test_database)


async def test_a_hold_is_not_released_by_another_user_nor_under_an_accepted_run(test_database: TestDatabase) -> None:
    user_id, hold_id = new_id(), new_id()
    async with metering_of(test_database) as database:
        await reserve(database, user_id, hold_id=hold_id)
        await release(database, new_id(), hold_id)
        await confirm(database, user_id, hold_id)
        with pytest.raises(HoldInUse):
            await release(database, user_id, hold_id)
    assert await counters(test_database, user_id) == {"runs": (0, 1), "tokens": (0, 1_000)}


async def test_expired_holds_are_swept_once_by_several_sweepers(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        for _ in range(20):
            await reserve(database, user_id)
        assert await sweep_holds(database, unconfirmed_for_s=0) == 0
        await expire_holds(test_database)
        swept = await asyncio.gather(*(sweep_holds(database, unconfirmed_for_s=0) for _ in range(4)))
    assert sum(swept) == 20
    assert await counters(test_database, user_id) == {"runs": (0, 0), "tokens": (0, 0)}
    assert await has_no_drift(test_database)


async def test_without_news_from_the_broker_only_confirmed_holds_are_swept(test_database: TestDatabase) -> None:
    user_id, confirmed_id, unconfirmed_id = new_id(), new_id(), new_id()
    async with metering_of(test_database) as database:
        await reserve(database, user_id, hold_id=confirmed_id)
        await reserve(database, user_id, hold_id=unconfirmed_id)
        await confirm(database, user_id, confirmed_id)
        await expire_holds(test_database, by_s=86_401)
        assert await sweep_holds(database, unconfirmed_for_s=None) == 1
    states = await test_database.fetch("SELECT id, state FROM metering.holds")
    assert {row["id"]: row["state"] for row in states} == {confirmed_id: "swept", unconfirmed_id: "held"}


async def test_a_confirmation_after_the_sweep_holds_again_so_that_nothing_else_takes_the_quota(
    test_database: TestDatabase,
) -> None:
    user_id, hold_id, plans = new_id(), new_id(), plans_with(runs=1, tokens=10**9)
    async with metering_of(test_database) as database:
        await reserve(database, user_id, hold_id=hold_id, plans=plans)
        await expire_holds(test_database)
        await sweep_holds(database, unconfirmed_for_s=0)
        assert await confirm(database, user_id, hold_id)
        assert not await confirm(database, user_id, hold_id)
        with pytest.raises(QuotaExceeded):
            await reserve(database, user_id, plans=plans)
        await finish(database, a_finished_run(user_id, hold_id))
        assert not await confirm(database, user_id, hold_id)
    assert await counters(test_database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}
    assert await has_no_drift(test_database)


async def test_every_month_has_its_own_quota(test_database: TestDatabase) -> None:
    user_id, plans = new_id(), plans_with(runs=1, tokens=10**9)
    async with metering_of(test_database) as database:
        hold = await reserve(database, user_id, plans=plans)
        for table in ("usage_metrics", "metering.holds"):
            await test_database.execute(
                f"UPDATE {table} SET period_start = period_start - interval '1 month', period_end = period_start"  # noqa: S608
            )
        granted = await asyncio.gather(
            *(reserve(database, user_id, plans=plans) for _ in range(10)), return_exceptions=True
        )
        assert sum(1 for answer in granted if not isinstance(answer, QuotaExceeded)) == 1
        await finish(database, a_finished_run(user_id, hold.id), plans=plans)
    months = await test_database.fetch(
        "SELECT metric_value, held_value FROM usage_metrics WHERE metric_type = 'runs' ORDER BY period_start"
    )
    assert [tuple(row.values()) for row in months] == [(1, 0), (0, 1)]
    assert await has_no_drift(test_database)
