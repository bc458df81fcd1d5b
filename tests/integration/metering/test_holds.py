"""Reservations: exact under any number of parallel asks, all or nothing, and repeatable by their id."""

import asyncio
from contextlib import AsyncExitStack
from uuid import UUID

import pytest

from libs.common.database import Database, DatabaseUnavailable
from libs.common.ids import new_id
from services.metering import operations
from services.metering.desk import HoldDesk
from services.metering.domain import Amounts, Ask, Hold, HoldConflict, HoldInUse, Metric, QuotaExceeded
from services.metering.jobs import sweep_holds
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.tasks import running
from tests.integration.metering.accounts import (
    PLANS,
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
        return await operations.confirm_hold(conn, PLANS, hold_id=hold_id, user_id=user_id)


async def release(database: Database, user_id: UUID, hold_id: UUID) -> None:
    async with database.transaction() as conn:
        await operations.release_hold(conn, hold_id=hold_id, user_id=user_id)


async def granted(desk: HoldDesk, user_id: UUID, amounts: Amounts) -> bool:
    """Ask as a client does: what is answered with 503 is asked again under the same id."""
    ask = Ask(hold_id=new_id(), user_id=str(user_id), amounts=amounts)

    async def verdict() -> bool | None:
        try:
            await desk.reserve(ask)
        except QuotaExceeded:
            return False
        except DatabaseUnavailable:
            return None
        return True

    answers: list[bool] = []

    async def is_decided() -> bool:
        answer = await verdict()
        answers.extend([] if answer is None else [answer])
        return answer is not None

    await eventually(is_decided, within_s=30)
    return answers[0]


class Overshoot:
    """Looks every 100 ms whether any counter stands above the limit, as an operator's own connection sees it."""

    def __init__(self, test_database: TestDatabase, limit: int) -> None:
        self._test_database = test_database
        self._limit = limit
        self.samples = 0
        self.worst = 0

    async def watch(self) -> None:
        """Until cancelled."""
        async with self._test_database.connect_as("venture_operator") as connection:

            async def look() -> None:
                above = await connection.fetchval(
                    "SELECT max(metric_value + held_value - $1) FROM usage_metrics WHERE metric_type = 'runs'",
                    self._limit,
                )
                self.samples += 1
                self.worst = max(self.worst, above or 0)

            await eventually(look, within_s=600, every_s=0.1)


@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_thousand_parallel_asks_against_a_limit_of_a_hundred_grant_exactly_a_hundred(
    test_database: TestDatabase, replicas: int
) -> None:
    user_id, plans = new_id(), plans_with(runs=100, tokens=10**9)
    overshoot = Overshoot(test_database, 100)
    async with AsyncExitStack() as stack:
        databases = [await stack.enter_async_context(metering_of(test_database)) for _ in range(replicas)]
        desks = [HoldDesk(database, plans) for database in databases]
        async with running(overshoot.watch):
            answers = await asyncio.gather(
                *(granted(desks[n % replicas], user_id, {"runs": 1, "tokens": 1_000}) for n in range(1_000))
            )
    assert sum(answers) == 100
    assert overshoot.worst == 0
    assert overshoot.samples
    assert await counters(test_database, user_id) == {"runs": (0, 100), "tokens": (0, 100_000)}
    assert await test_database.fetchval("SELECT count(*) FROM metering.holds") == 100
    assert await has_no_drift(test_database)


async def test_many_users_at_once_each_get_exactly_their_limit(test_database: TestDatabase) -> None:
    plans = plans_with(runs=3, tokens=10**9)
    users = [new_id() for _ in range(40)]
    async with metering_of(test_database) as one, metering_of(test_database) as other:
        desks = [HoldDesk(one, plans), HoldDesk(other, plans)]
        await asyncio.gather(
            *(granted(desks[n % 2], user_id, {"runs": 1, "tokens": 10}) for n in range(10) for user_id in users)
        )
    held = await test_database.fetch("SELECT held_value FROM usage_metrics WHERE metric_type = 'runs'")
    assert [row["held_value"] for row in held] == [3] * 40
    assert await has_no_drift(test_database)


@pytest.mark.parametrize(
    "too_much", [pytest.param(700, id="more than the limit itself"), pytest.param(350, id="more than is left of it")]
)
async def test_who_runs_short_in_a_batch_takes_nothing_and_costs_nobody_else(
    test_database: TestDatabase, too_much: int
) -> None:
    plans = plans_with(runs=3, tokens=1_000)
    short, other = new_id(), new_id()
    async with metering_of(test_database) as database:
        await reserve(database, short, amounts={"runs": 1, "tokens": 400}, plans=plans)
        asks = [
            Ask(hold_id=new_id(), user_id=str(user_id), amounts={"runs": 1, "tokens": tokens})
            for user_id, tokens in ((short, 300), (other, 900), (short, too_much), (other, 90))
        ]
        async with database.transaction() as conn:
            verdicts = await operations.reserve_many(conn, plans, asks)
    assert [isinstance(verdict, Hold) for verdict in verdicts] == [True, True, False, True]
    refusal = verdicts[2]
    assert isinstance(refusal, QuotaExceeded)
    assert (refusal.metric, refusal.usage.held) == ("tokens", 700)
    assert await counters(test_database, short) == {"runs": (0, 2), "tokens": (0, 700)}
    assert await counters(test_database, other) == {"runs": (0, 2), "tokens": (0, 990)}
    assert await has_no_drift(test_database)


async def test_asks_without_the_desk_are_as_exact(test_database: TestDatabase) -> None:
    user_id, plans = new_id(), plans_with(runs=7, tokens=10**9)
    async with metering_of(test_database) as database:
        answers = await asyncio.gather(
            *(reserve(database, user_id, plans=plans) for _ in range(30)), return_exceptions=True
        )
    assert sum(1 for answer in answers if isinstance(answer, Hold)) == 7
    assert await counters(test_database, user_id) == {"runs": (0, 7), "tokens": (0, 7_000)}


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


async def test_one_whose_counters_are_locked_keeps_nobody_elses_holds(test_database: TestDatabase) -> None:
    locked, other = new_id(), new_id()
    async with metering_of(test_database) as database, test_database.connect_as("venture_metering") as somebody:
        await reserve(database, locked)
        await reserve(database, other)
        await expire_holds(test_database)
        async with somebody.transaction():
            await somebody.execute("SELECT FROM usage_metrics WHERE user_id = $1 FOR UPDATE", str(locked))
            assert await sweep_holds(database, unconfirmed_for_s=0) == 1
            assert await counters(test_database, other) == {"runs": (0, 0), "tokens": (0, 0)}
        assert await sweep_holds(database, unconfirmed_for_s=0) == 1
    assert await counters(test_database, locked) == {"runs": (0, 0), "tokens": (0, 0)}


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
