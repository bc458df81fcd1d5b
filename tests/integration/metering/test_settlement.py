"""Settlement: booked once whatever is delivered how often, in which order, after whatever became of the hold."""

import asyncio

import pytest

from libs.common.database import Database
from libs.common.events.agents import RunFinished
from libs.common.events.gateway import RunRequested
from libs.common.events.metering import ThresholdReached, UsageSettled
from libs.common.ids import new_id
from services.metering import consumers, operations
from services.metering.domain import HoldConflict, Metric
from services.metering.jobs import sweep_holds
from tests.harness.database import TestDatabase
from tests.integration.metering.accounts import (
    PLANS,
    a_finished_run,
    counters,
    events,
    expire_holds,
    finish,
    has_no_drift,
    metering_of,
    plans_with,
    reserve,
)


class KilledError(Exception):
    pass


async def settle_and_die(database: Database, event: RunFinished) -> None:
    async with database.transaction() as conn:
        await consumers.on_run_finished(event, conn, plans=PLANS)
        raise KilledError


async def test_fifty_deliveries_of_a_finished_run_at_once_are_booked_once_even_without_the_inbox(
    test_database: TestDatabase,
) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        hold = await reserve(database, user_id)
        event = a_finished_run(user_id, hold.id)
        await asyncio.gather(*(finish(database, event) for _ in range(50)))
    assert await counters(test_database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}
    ledger = await test_database.fetch(
        "SELECT event_id, amount, kind, cost_micro_usd, attributes FROM metering.usage_ledger ORDER BY metric_type"
    )
    assert [(row["event_id"], row["amount"], row["kind"], row["cost_micro_usd"]) for row in ledger] == [
        (str(hold.id), 1, "usage", 0),
        (str(hold.id), 700, "usage", 21),
    ]
    assert ledger[0]["attributes"] == {"outcome": "succeeded", "agent_type": "suggestion", "model": "offline"}
    assert [settled["amounts"] for settled in await events(test_database, UsageSettled.type)] == [
        {"runs": 1, "tokens": 700}
    ]
    assert await has_no_drift(test_database)


@pytest.mark.parametrize(
    ("facts", "booked"),
    [
        ({"outcome": "failed"}, {"runs": 0, "tokens": 700}),
        ({"outcome": "cancelled"}, {"runs": 0, "tokens": 700}),
        ({"outcome": "timed_out", "is_billable": False}, {"runs": 0, "tokens": 0}),
        ({"outcome": "failed", "input_tokens": 0, "output_tokens": 0}, {"runs": 0, "tokens": 0}),
    ],
)
async def test_what_did_not_succeed_costs_no_run_and_at_most_the_tokens_used(
    test_database: TestDatabase, facts: dict[str, object], booked: dict[str, int]
) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        hold = await reserve(database, user_id)
        await finish(database, a_finished_run(user_id, hold.id, **facts))
    assert await counters(test_database, user_id) == {name: (amount, 0) for name, amount in booked.items()}
    assert [settled["amounts"] for settled in await events(test_database, UsageSettled.type)] == [booked]
    assert await has_no_drift(test_database)


async def test_a_settlement_after_the_sweep_is_booked_and_gives_nothing_back_twice(
    test_database: TestDatabase,
) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        hold, other = await reserve(database, user_id), await reserve(database, user_id)
        await test_database.execute(
            "UPDATE metering.holds SET expires_at = now() - interval '1 s' WHERE id = $1", hold.id
        )
        assert await sweep_holds(database, unconfirmed_for_s=0) == 1
        for _ in range(2):
            await finish(database, a_finished_run(user_id, hold.id))
    assert await counters(test_database, user_id) == {"runs": (1, 1), "tokens": (700, 1_000)}
    states = await test_database.fetch("SELECT id, state, settled_at IS NOT NULL AS booked FROM metering.holds")
    assert {row["id"]: (row["state"], row["booked"]) for row in states} == {
        hold.id: ("swept", True),
        other.id: ("held", False),
    }
    assert await has_no_drift(test_database)


async def test_a_sweep_and_a_settlement_at_once_end_the_hold_once(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        holds = [await reserve(database, user_id) for _ in range(30)]
        await expire_holds(test_database)
        await asyncio.gather(
            *(finish(database, a_finished_run(user_id, hold.id)) for hold in holds),
            *(sweep_holds(database, unconfirmed_for_s=0) for _ in range(3)),
        )
    assert await counters(test_database, user_id) == {"runs": (30, 0), "tokens": (21_000, 0)}
    assert await has_no_drift(test_database)


async def test_a_finished_run_nobody_held_quota_for_is_booked_once(test_database: TestDatabase) -> None:
    user_id, run_id = new_id(), new_id()
    async with metering_of(test_database) as database:
        await asyncio.gather(*(finish(database, a_finished_run(user_id, run_id)) for _ in range(20)))
    assert await counters(test_database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}
    assert await has_no_drift(test_database)


async def test_the_news_of_a_run_that_has_already_finished_changes_nothing(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        hold = await reserve(database, user_id)
        await finish(database, a_finished_run(user_id, hold.id))
        requested = RunRequested(run_id=hold.id, user_id=user_id, task="hello", max_output_tokens=100)
        async with database.transaction() as conn:
            await consumers.on_run_requested(requested, conn, plans=PLANS)
    assert await counters(test_database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}
    assert await test_database.fetchval("SELECT state FROM metering.holds WHERE id = $1", hold.id) == "settled"


async def test_a_run_cannot_be_settled_on_another_users_account(test_database: TestDatabase) -> None:
    user_id, stranger_id = new_id(), new_id()
    async with metering_of(test_database) as database:
        hold = await reserve(database, user_id)
        with pytest.raises(HoldConflict):
            await finish(database, a_finished_run(stranger_id, hold.id))
    assert await counters(test_database, stranger_id) == {}


async def test_thresholds_are_told_once_a_period(test_database: TestDatabase) -> None:
    user_id, plans = new_id(), plans_with(runs=10, tokens=10**9)
    async with metering_of(test_database) as database:
        holds = [await reserve(database, user_id, plans=plans) for _ in range(10)]
        for hold in holds[:7]:
            await finish(database, a_finished_run(user_id, hold.id), plans=plans)
        assert await events(test_database, ThresholdReached.type) == []
        await asyncio.gather(*(finish(database, a_finished_run(user_id, hold.id), plans=plans) for hold in holds[7:]))
    told = await events(test_database, ThresholdReached.type)
    assert [(event["metric"], event["percent"], event["used"], event["limit"]) for event in told] == [
        ("runs", 80, 8, 10),
        ("runs", 100, 10, 10),
    ]


async def test_a_settlement_that_fails_half_way_leaves_no_trace(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        hold = await reserve(database, user_id)
        with pytest.raises(KilledError):
            await settle_and_die(database, a_finished_run(user_id, hold.id))
        assert await counters(test_database, user_id) == {"runs": (0, 1), "tokens": (0, 1_000)}
        assert await test_database.fetchval("SELECT count(*) FROM metering.outbox") == 0
        await finish(database, a_finished_run(user_id, hold.id))
    assert await counters(test_database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}


async def test_a_proposed_run_is_granted_or_denied_by_event(test_database: TestDatabase) -> None:
    user_id, run_id, denied_id, plans = new_id(), new_id(), new_id(), plans_with(runs=1, tokens=10**9)
    async with metering_of(test_database) as database:
        for proposed in (run_id, run_id, denied_id):
            async with database.transaction() as conn:
                await operations.answer_proposal(
                    conn, plans, run_id=proposed, user_id=user_id, amounts={Metric.RUNS: 1, Metric.TOKENS: 10}
                )
    answers = await test_database.fetch("SELECT type, data ->> 'run_id' AS run_id FROM metering.outbox ORDER BY id")
    assert [(row["type"].split(".")[1], row["run_id"]) for row in answers] == [
        ("hold_granted", str(run_id)),
        ("hold_granted", str(run_id)),
        ("hold_denied", str(denied_id)),
    ]
    assert await test_database.fetchval("SELECT confirmed_at IS NOT NULL FROM metering.holds") is True
    assert await counters(test_database, user_id) == {"runs": (0, 1), "tokens": (0, 10)}


async def test_a_batch_of_finished_runs_books_each_once_and_tells_its_threshold_once(
    test_database: TestDatabase,
) -> None:
    user_id, other_id = new_id(), new_id()
    plans = plans_with(runs=2, tokens=10**9)
    async with metering_of(test_database) as database:
        holds = [await reserve(database, user_id, plans=plans) for _ in range(2)]
        first, second = (a_finished_run(user_id, hold.id) for hold in holds)
        contradiction = a_finished_run(user_id, holds[0].id, output_tokens=1)
        unknown = a_finished_run(other_id, new_id())
        async with database.transaction() as conn:
            await consumers.on_runs_finished([first, unknown, first, contradiction, second], conn, plans=plans)
    assert await counters(test_database, user_id) == {"runs": (2, 0), "tokens": (1_400, 0)}
    assert await counters(test_database, other_id) == {"runs": (1, 0), "tokens": (700, 0)}
    assert len(await events(test_database, UsageSettled.type)) == 3
    told = [(one["metric"], one["percent"]) for one in await events(test_database, ThresholdReached.type)]
    assert told == [("runs", 80), ("runs", 100)]
    assert await test_database.fetchval("SELECT count(*) FROM metering.conflicts") == 1
    assert await has_no_drift(test_database)
