"""Reservations by one statement: it decides as the transaction does, and leaves no trace where it cannot decide."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from libs.common.database import Database
from libs.common.errors import VentureError
from libs.common.ids import new_id
from libs.common.plans import Plans
from services.metering import operations
from services.metering.accounts import operations as account_operations
from services.metering.accounts.queries import find_accounts, get_account
from services.metering.desk import HoldDesk
from services.metering.domain import Amounts, Ask, Hold, Period, QuotaExceeded
from services.metering.reservations.operations import reserve_at_once
from services.metering.reservations.queries import insert_holds_with_quota
from services.metering.taking import takings_of
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.integration.metering.accounts import (
    counters,
    has_no_drift,
    metering_of,
    plans_with,
    reserve,
    set_tier,
)
from tests.integration.metering.test_grants import grant

PLAN = plans_with(runs=3, tokens=1_000)


class KilledError(Exception):
    pass


def an_ask(user_id: UUID, hold_id: UUID | None = None, **amounts: int) -> Ask:
    return Ask(hold_id=hold_id or new_id(), user_id=str(user_id), amounts=amounts or {"runs": 1})


async def by_statement(database: Database, asks: Sequence[Ask], plans: Plans = PLAN) -> dict[UUID, Any]:
    """The verdicts that need no transaction."""
    async with database.statement() as conn:
        known = await find_accounts(conn, plans, [ask.user_id for ask in asks])
    async with database.statement() as conn:
        return {**await reserve_at_once(conn, plans, asks, known)}


async def by_transaction(database: Database, asks: Sequence[Ask], plans: Plans = PLAN) -> list[Hold | VentureError]:
    async with database.transaction() as conn:
        return await operations.reserve_many(conn, plans, asks)


async def by_desk(database: Database, asks: Sequence[Ask], plans: Plans = PLAN) -> list[Hold | BaseException]:
    return await HoldDesk(database, plans).reserve_many(asks)


async def until_it_waits(test_database: TestDatabase, asking: asyncio.Task[Any]) -> None:
    async def waits_or_is_over() -> bool:
        waiting = await test_database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(waiting) or asking.done()

    await eventually(waits_or_is_over)
    assert not asking.done()


async def test_what_fits_is_held_by_one_statement(test_database: TestDatabase) -> None:
    users = [new_id() for _ in range(3)]
    asks = [an_ask(user_id, runs=1, tokens=100) for user_id in (*users, users[0])]
    async with metering_of(test_database) as database:
        verdicts = await by_statement(database, asks)
        again = await by_transaction(database, asks)
    assert [verdicts[ask.hold_id] for ask in asks] == again
    assert await counters(test_database, users[0]) == {"runs": (0, 2), "tokens": (0, 200)}
    assert await counters(test_database, users[1]) == {"runs": (0, 1), "tokens": (0, 100)}
    assert await has_no_drift(test_database)


async def test_who_has_no_room_at_all_is_refused_as_by_the_transaction_and_costs_nobody_else(
    test_database: TestDatabase,
) -> None:
    short, new, other = new_id(), new_id(), new_id()
    async with metering_of(test_database) as database:
        await reserve(database, short, amounts={"runs": 1, "tokens": 400}, plans=PLAN)
        hopeless = [an_ask(short, runs=1, tokens=700), an_ask(short, runs=1, tokens=800), an_ask(new, tokens=1_001)]
        fits = an_ask(other)
        verdicts = await by_statement(database, [*hopeless, fits])
        expected = await by_transaction(database, hopeless)
    assert isinstance(verdicts[fits.hold_id], Hold)
    assert [verdicts[ask.hold_id].fields for ask in hopeless] == [
        refusal.fields for refusal in expected if isinstance(refusal, QuotaExceeded)
    ]
    assert await counters(test_database, short) == {"runs": (0, 1), "tokens": (0, 400)}
    assert await counters(test_database, new) == {}
    assert await test_database.fetchval("SELECT count(*) FROM metering.holds") == 2


async def test_asks_of_which_only_some_fit_leave_no_trace_and_are_decided_in_their_order(
    test_database: TestDatabase,
) -> None:
    short, other = new_id(), new_id()
    asks = [an_ask(short, tokens=600), an_ask(other), an_ask(short, tokens=600), an_ask(short, tokens=400)]
    async with metering_of(test_database) as database:
        assert list(await by_statement(database, asks)) == [asks[1].hold_id]
        assert await counters(test_database, short) == {}
        assert await test_database.fetchval("SELECT count(*) FROM metering.holds") == 1
        verdicts = await by_desk(database, asks)
    assert [isinstance(verdict, Hold) for verdict in verdicts] == [True, True, False, True]
    assert await counters(test_database, short) == {"tokens": (0, 1_000)}
    assert await counters(test_database, other) == {"runs": (0, 1)}
    assert await has_no_drift(test_database)


async def test_who_loses_the_race_for_the_last_of_a_quota_leaves_no_trace_of_the_whole_statement(
    test_database: TestDatabase,
) -> None:
    raced, others = new_id(), [new_id() for _ in range(4)]
    asks = [an_ask(user_id) for user_id in (*others[:2], raced, *others[2:])]
    async with metering_of(test_database) as database:
        await reserve(database, raced, amounts={"runs": 2}, plans=PLAN)
        async with database.transaction() as conn:
            await operations.reserve_usage(conn, PLAN, hold_id=new_id(), user_id=raced, amounts={"runs": 1})
            asking = asyncio.create_task(by_statement(database, asks))
            await until_it_waits(test_database, asking)
        assert await asking == {}
        assert await test_database.fetchval("SELECT count(*) FROM metering.holds") == 2
        assert await test_database.fetchval("SELECT count(*) FROM usage_metrics") == 1
        verdicts = await by_desk(database, asks)
    assert [isinstance(verdict, Hold) for verdict in verdicts] == [True, True, False, True, True]
    assert await counters(test_database, raced) == {"runs": (0, 3)}
    assert await has_no_drift(test_database)


async def test_the_same_ask_at_the_same_moment_is_held_once(test_database: TestDatabase) -> None:
    other, ask = an_ask(new_id()), an_ask(new_id())
    async with metering_of(test_database) as database:
        async with database.transaction() as conn:
            first = await operations.reserve_many(conn, PLAN, [ask])
            asking = asyncio.create_task(by_desk(database, [other, ask]))
            await until_it_waits(test_database, asking)
        verdicts = await asking
    assert isinstance(verdicts[0], Hold)
    assert verdicts[1:] == first
    assert await test_database.fetchval("SELECT array_agg(held_value) FROM usage_metrics") == [1, 1]
    assert await has_no_drift(test_database)


async def test_the_same_ask_as_one_that_fails_is_held_for_itself(test_database: TestDatabase) -> None:
    asks = [an_ask(new_id()), an_ask(new_id())]
    askings: list[asyncio.Task[dict[UUID, Any]]] = []

    async def reserve_and_fail(database: Database) -> None:
        async with database.transaction() as conn:
            await operations.reserve_many(conn, PLAN, asks[1:])
            askings.append(asyncio.create_task(by_statement(database, asks)))
            await until_it_waits(test_database, askings[0])
            raise KilledError

    async with metering_of(test_database) as database:
        with pytest.raises(KilledError):
            await reserve_and_fail(database)
        assert len(await askings[0]) == 2
    assert await test_database.fetchval("SELECT array_agg(held_value) FROM usage_metrics") == [1, 1]
    assert await has_no_drift(test_database)


async def test_an_id_that_is_known_is_answered_as_before_though_the_quota_is_used_up(
    test_database: TestDatabase,
) -> None:
    user_id = new_id()
    first, stranger = an_ask(user_id, runs=3), new_id()
    async with metering_of(test_database) as database:
        (hold,) = await by_desk(database, [first])
        assert await by_desk(database, [first]) == [hold]
        conflict, fits = await by_desk(database, [an_ask(stranger, first.hold_id), an_ask(stranger)])
    assert getattr(conflict, "code", None) == "metering.hold_conflict"
    assert isinstance(fits, Hold)
    assert await counters(test_database, user_id) == {"runs": (0, 3)}


async def test_all_holds_are_there_before_the_first_counter_is_locked(test_database: TestDatabase) -> None:
    users = sorted(new_id() for _ in range(3))
    asks = [an_ask(user_id) for user_id in users]
    async with (
        metering_of(test_database) as database,
        test_database.connect_as("venture_metering") as locking,
        test_database.connect_as("venture_metering") as other,
    ):
        await reserve(database, users[0], amounts={"runs": 1}, plans=PLAN)
        async with locking.transaction():
            await locking.execute("SELECT FROM usage_metrics WHERE user_id = $1 FOR UPDATE", str(users[0]))
            asking = asyncio.create_task(by_statement(database, asks))
            await until_it_waits(test_database, asking)
            await other.execute("SET lock_timeout = '100ms'")
            for ask in asks:
                with pytest.raises(asyncpg.LockNotAvailableError):
                    await other.execute(
                        "INSERT INTO metering.holds (id, user_id, amounts, period_start, period_end, expires_at)"
                        " VALUES ($1, 'x', '{}', now(), now(), now())",
                        ask.hold_id,
                    )
        assert len(await asking) == 3
    assert await has_no_drift(test_database)


async def one_by_desk(database: Database, ask: Ask, plans: Plans) -> Hold | BaseException:
    return (await by_desk(database, [ask], plans))[0]


async def one_by_transaction(database: Database, ask: Ask, plans: Plans) -> Hold | BaseException:
    return (await by_transaction(database, [ask], plans))[0]


@pytest.mark.parametrize("way", [one_by_desk, one_by_transaction])
async def test_a_plan_that_shrinks_during_an_ask_is_in_force_for_the_next(
    test_database: TestDatabase, way: Callable[[Database, Ask, Plans], Coroutine[Any, Any, Hold | BaseException]]
) -> None:
    """Either way reads the account without a lock, and takes by what it has read."""
    user_id = new_id()
    async with metering_of(test_database) as database, test_database.connect_as("venture_metering") as locking:
        await set_tier(database, user_id, "enterprise", version=2)
        await reserve(database, user_id, amounts={"runs": 3}, plans=PLAN)
        async with locking.transaction():
            await locking.execute("SELECT FROM usage_metrics WHERE user_id = $1 FOR UPDATE", str(user_id))
            asking = asyncio.create_task(way(database, an_ask(user_id), PLAN))
            await until_it_waits(test_database, asking)
            await set_tier(database, user_id, "free", version=3)
        assert isinstance(await asking, Hold)
        assert isinstance(await way(database, an_ask(user_id), PLAN), QuotaExceeded)
    assert await counters(test_database, user_id) == {"runs": (0, 4)}


async def test_a_period_that_is_over_is_nothing_to_hold_in(test_database: TestDatabase) -> None:
    ask = an_ask(new_id())
    async with metering_of(test_database) as database:
        async with database.transaction() as conn:
            now = await get_account(conn, PLAN, ask.user_id)
        over = Period(start=now.read_at - timedelta(days=30), end=now.read_at)
        takings = takings_of(PLAN, [(ask, over)], {ask.user_id: now})
        async with database.statement() as conn:
            taken = await insert_holds_with_quota(conn, [(ask, over)], takings)
    assert taken is not None
    assert (taken.holds, taken.odd) == ({}, {ask.user_id})
    assert await test_database.fetchval("SELECT count(*) FROM metering.holds") == 0
    assert await test_database.fetchval("SELECT count(*) FROM usage_metrics") == 0


async def test_credits_are_left_to_the_transaction_and_who_may_not_ask_is_told_at_once(
    test_database: TestDatabase,
) -> None:
    credited, erased, other = new_id(), new_id(), new_id()
    for_feature = Ask(hold_id=new_id(), user_id=str(other), amounts={"runs": 1}, features=["no_such_feature"])
    asks = [an_ask(credited), an_ask(erased), for_feature]
    async with metering_of(test_database) as database:
        await grant(database, credited, 5)
        async with database.transaction() as conn:
            await account_operations.erase_user(conn, user_id=erased)
        verdicts = await by_statement(database, asks)
        assert [verdicts[ask.hold_id].code for ask in asks[1:]] == [
            "metering.account_deleted",
            "metering.feature_not_included",
        ]
        assert asks[0].hold_id not in verdicts
        assert [isinstance(verdict, Hold) for verdict in await by_desk(database, asks)] == [True, False, False]
        assert isinstance((await by_desk(database, [an_ask(credited, runs=7)]))[0], Hold)
    assert await counters(test_database, credited) == {"runs": (0, 8)}
    assert await has_no_drift(test_database)


def told(verdict: Hold | BaseException, names: Mapping[UUID, int]) -> Any:
    """What a verdict says, without what differs between twins."""
    if isinstance(verdict, Hold):
        return "held", names[verdict.id], verdict.amounts, verdict.state, verdict.period
    assert isinstance(verdict, VentureError)
    return verdict.code, verdict.fields, str(verdict)


def a_batch(chance: random.Random, known: Sequence[tuple[int, int]]) -> list[tuple[int, int, Amounts, Sequence[str]]]:
    """Number of the hold, number of the user, amounts, features; now and then an id of before."""
    asks: dict[int, tuple[int, int, Amounts, Sequence[str]]] = {}
    for number in range(len(known), len(known) + chance.randint(1, 9)):
        hold, user = number, chance.randrange(6)
        if known and chance.random() < 0.1:
            hold, user = chance.choice(known)
        amounts: Amounts = chance.choice(
            [{"runs": 1}, {"runs": 1, "tokens": 90}, {"tokens": chance.randint(1, 600)}, {"tokens": 1_001}]
        )
        features = ["no_such_feature"] if chance.random() < 0.05 else []
        asks[hold] = hold, user, amounts, features
    return list(asks.values())


async def test_the_desk_and_the_transaction_give_the_same_verdicts(test_database: TestDatabase) -> None:
    """Twins of six users ask the same, batch by batch: some the one way, the others the other."""
    chance = random.Random(7)  # noqa: S311 - a history to repeat
    twins = [[new_id() for _ in range(6)] for _ in range(2)]
    ids: list[dict[int, UUID]] = [{}, {}]
    known: list[tuple[int, int]] = []
    kinds: set[str] = set()
    async with metering_of(test_database) as database:
        for users in twins:
            await set_tier(database, users[0], "enterprise")
            await grant(database, users[1], 4)
        for _ in range(60):
            batch = a_batch(chance, known)
            known += [(hold, user) for hold, user, _, _ in batch if hold >= len(known)]
            told_to: list[list[Any]] = []
            for users, own, way in zip(twins, ids, (by_desk, by_transaction), strict=True):
                asks = [
                    Ask(
                        hold_id=own.setdefault(hold, new_id()),
                        user_id=str(users[user]),
                        amounts=amounts,
                        features=features,
                    )
                    for hold, user, amounts, features in batch
                ]
                names = {hold_id: number for number, hold_id in own.items()}
                told_to.append([told(verdict, names) for verdict in await way(database, asks)])
            assert told_to[0] == told_to[1]
            kinds |= {verdict[0] for verdict in told_to[0]}
        for one, other in zip(*twins, strict=True):
            assert await counters(test_database, one) == await counters(test_database, other)
    assert kinds == {"held", "metering.quota_exceeded", "metering.hold_conflict", "metering.feature_not_included"}
    assert await has_no_drift(test_database)
