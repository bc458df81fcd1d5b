"""Runs that end together: booked in one statement, and everything stands as after one by one."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from libs.common.database import Database
from libs.common.events.agents import RunFinished
from libs.common.events.metering import ThresholdReached, UsageSettled
from libs.common.ids import new_id
from libs.common.plans import Plans
from services.metering import consumers, operations
from services.metering.accounts import operations as account_operations
from services.metering.jobs import sweep_holds
from services.metering.ledger import domain as ledger_rules
from services.metering.ledger import queries as ledger
from services.metering.ledger.domain import Settlement
from tests.harness.database import TestDatabase
from tests.integration.metering.accounts import (
    PLANS,
    a_finished_run,
    counters,
    events,
    finish,
    has_no_drift,
    metering_of,
    plans_with,
    reserve,
)
from tests.integration.metering.test_grants import grant, used_of

PLAN = plans_with(runs=10, tokens=10**9)


async def finish_together(database: Database, finished: Sequence[RunFinished], *, plans: Plans = PLANS) -> None:
    async with database.transaction() as conn:
        await consumers.on_runs_finished(finished, conn, plans=plans)


async def ledger_of(test_database: TestDatabase, user_id: UUID) -> list[tuple[Any, ...]]:
    rows = await test_database.fetch(
        """
        SELECT metric_type, amount, kind, cost_micro_usd, attributes ->> 'outcome' AS outcome
        FROM metering.usage_ledger WHERE user_id = $1 ORDER BY metric_type, amount, outcome
        """,
        str(user_id),
    )
    return [tuple(row.values()) for row in rows]


async def test_a_crossed_threshold_is_told_once_with_what_is_used_after_the_batch(test_database: TestDatabase) -> None:
    user_id, other_id = new_id(), new_id()
    async with metering_of(test_database) as database:
        holds = [await reserve(database, user_id, plans=PLAN) for _ in range(10)]
        others = [await reserve(database, other_id, plans=PLAN) for _ in range(7)]
        runs = [a_finished_run(user_id, hold.id) for hold in holds]
        await finish_together(
            database, [*runs[:9], *(a_finished_run(other_id, hold.id) for hold in others)], plans=PLAN
        )
        assert [
            (told["user_id"], told["percent"], told["used"])
            for told in await events(test_database, ThresholdReached.type)
        ] == [(str(user_id), 80, 9)]
        await finish_together(database, runs[9:], plans=PLAN)
    told = await events(test_database, ThresholdReached.type)
    assert [(one["metric"], one["percent"], one["used"], one["limit"]) for one in told] == [
        ("runs", 80, 9, 10),
        ("runs", 100, 10, 10),
    ]
    assert await counters(test_database, user_id) == {"runs": (10, 0), "tokens": (7_000, 0)}
    assert await counters(test_database, other_id) == {"runs": (7, 0), "tokens": (4_900, 0)}
    assert await has_no_drift(test_database)


async def test_two_batches_with_the_same_runs_in_another_order_at_once_book_each_once(
    test_database: TestDatabase,
) -> None:
    users = [new_id() for _ in range(12)]
    async with metering_of(test_database) as database:
        runs = [a_finished_run(user_id, (await reserve(database, user_id)).id) for user_id in users for _ in range(2)]
        await asyncio.gather(*(finish_together(database, order) for order in (runs, runs[::-1], runs[5:] + runs[:5])))
    for user_id in users:
        assert await counters(test_database, user_id) == {"runs": (2, 0), "tokens": (1_400, 0)}
    assert len(await events(test_database, UsageSettled.type)) == 24
    assert await has_no_drift(test_database)


async def test_a_run_that_is_booked_although_its_hold_is_open_frees_the_hold_and_books_nothing(
    test_database: TestDatabase,
) -> None:
    """As after a restored backup of the holds alone."""
    user_id = new_id()
    async with metering_of(test_database) as database:
        known, new = await reserve(database, user_id), await reserve(database, user_id)
        async with database.transaction() as conn:
            key = ledger_rules.event_key(ledger_rules.RUNS, str(known.id))
            await ledger.claim_event(conn, key=key, digest=bytes(16))
        await finish_together(database, [a_finished_run(user_id, hold.id) for hold in (known, new)])
    settled = {one["hold_id"]: one["amounts"] for one in await events(test_database, UsageSettled.type)}
    assert settled == {str(known.id): {"runs": 0, "tokens": 0}, str(new.id): {"runs": 1, "tokens": 700}}
    assert await counters(test_database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}
    assert await has_no_drift(test_database)


async def test_a_hold_of_last_month_ends_in_its_month_beside_one_of_this(test_database: TestDatabase) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        old = await reserve(database, user_id)
        for table in ("usage_metrics", "metering.holds"):
            await test_database.execute(
                f"UPDATE {table} SET period_start = period_start - interval '1 month', period_end = period_start"  # noqa: S608
            )
        new = await reserve(database, user_id)
        await finish_together(database, [a_finished_run(user_id, hold.id) for hold in (new, old)])
    months = await test_database.fetch(
        "SELECT metric_value, held_value FROM usage_metrics WHERE metric_type = 'tokens' ORDER BY period_start"
    )
    assert [tuple(row.values()) for row in months] == [(700, 0), (700, 0)]
    assert await has_no_drift(test_database)


async def test_one_without_tokens_has_its_price_with_the_run_and_held_metrics_it_did_not_use_are_freed(
    test_database: TestDatabase,
) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        holds = [await reserve(database, user_id, amounts={"runs": 1, "exports": 1}) for _ in range(2)]
        used = Settlement(hold_id=holds[0].id, user_id=user_id, used={"runs": 1, "tokens": 0}, cost_micro_usd=5)
        unused = Settlement(hold_id=holds[1].id, user_id=user_id, used={"templates": 1}, cost_micro_usd=7)
        async with database.transaction() as conn:
            await operations.settle_holds(conn, PLANS, [used, unused])
    assert await ledger_of(test_database, user_id) == [
        ("runs", 1, "usage", 5, None),
        ("templates", 1, "usage", 7, None),
    ]
    assert await counters(test_database, user_id) == {
        "exports": (0, 0),
        "runs": (1, 0),
        "templates": (1, 0),
        "tokens": (0, 0),
    }
    assert await has_no_drift(test_database)


async def test_a_batch_of_any_runs_comes_to_the_same_as_one_by_one(test_database: TestDatabase) -> None:
    """Twins finish the same runs: open, swept, unknown, told twice or otherwise, of the credited and of the erased."""
    chance = random.Random(3)  # noqa: S311 - a history to repeat
    plans = plans_with(runs=4, tokens=2_000)
    async with metering_of(test_database) as database:
        stories: list[list[RunFinished]] = [[], []]
        twins = [[new_id() for _ in range(6)] for _ in range(2)]
        for number in range(40):
            user = chance.randrange(6)
            outcome = chance.choice(["succeeded", "failed", "cancelled"])
            tokens, kind = (
                chance.randrange(120),
                chance.choice(["open", "open", "open", "unknown", "twice", "otherwise"]),
            )
            for users, story in zip(twins, stories, strict=True):
                run_id = new_id()
                if kind != "unknown":
                    await reserve(database, users[user], hold_id=run_id, amounts={"runs": 1, "tokens": 200})
                run = a_finished_run(users[user], run_id, outcome=outcome, input_tokens=tokens, output_tokens=number)
                again = run if kind == "twice" else run.model_copy(update={"output_tokens": 999})
                story.extend([run, again] if kind in {"twice", "otherwise"} else [run])
        for users, story in zip(twins, stories, strict=True):
            await grant(database, users[0], 3)
            async with database.transaction() as conn:
                await account_operations.erase_user(conn, user_id=users[1])
            swept = str(story[0].run_id)
            await test_database.execute("UPDATE metering.holds SET expires_at = now() WHERE id = $1", UUID(swept))
        await sweep_holds(database, unconfirmed_for_s=0)
        cuts = sorted(chance.sample(range(1, len(stories[0])), 4))
        for start, end in zip([0, *cuts], [*cuts, len(stories[0])], strict=True):
            await finish_together(database, stories[0][start:end], plans=plans)
        for run in stories[1]:
            await finish(database, run, plans=plans)
    for one, other in zip(*twins, strict=True):
        assert await counters(test_database, one) == await counters(test_database, other)
        assert await ledger_of(test_database, one) == await ledger_of(test_database, other)
    told = await events(test_database, ThresholdReached.type)
    thresholds = [
        {
            (users.index(UUID(one["user_id"])), one["metric"], one["percent"])
            for one in told
            if UUID(one["user_id"]) in users
        }
        for users in twins
    ]
    assert thresholds[0] == thresholds[1]
    assert len(told) == 2 * len(thresholds[0])
    assert len(set((await used_of(test_database)).values())) == 1
    assert await has_no_drift(test_database)
