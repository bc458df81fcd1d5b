"""Who may do what with metering's tables: the runbook's SQL, users' own rows, the append-only ledger, erasure."""

import asyncio
from typing import Final, LiteralString
from uuid import UUID

import asyncpg
import pytest

from libs.common.database import DatabaseUnavailable
from libs.common.events.gateway import RunRequested, UserDeleted
from libs.common.events.metering import UserErasedByMetering
from libs.common.ids import new_id
from services.metering import consumers, operations
from services.metering.accounts import queries as accounts
from services.metering.domain import AccountDeleted
from tests.harness.database import TestDatabase
from tests.integration.metering.accounts import (
    PLANS,
    a_finished_run,
    counters,
    events,
    finish,
    has_no_drift,
    metering_of,
    reserve,
    set_tier,
)

# Word for word from the operators' runbook.
TOP_USAGE: Final = """
SELECT user_id, metric_type, metric_value, period_start
FROM usage_metrics
ORDER BY metric_value DESC
LIMIT 10;
"""
RESET_FREE_TIER: Final = """
DELETE FROM usage_metrics um
USING user_profiles up
WHERE um.user_id = up.user_id::text
AND up.subscription_tier = 'free';
"""


def reset_user(user_id: UUID) -> str:
    return """
DELETE FROM usage_metrics 
WHERE user_id = 'user-uuid-here';
""".replace(  # noqa: W291 - the runbook's trailing space
        "user-uuid-here", str(user_id)
    )


async def a_user(test_database: TestDatabase, *, tier: str = "free", is_admin: bool = False) -> UUID:
    user_id = new_id()
    await test_database.execute("INSERT INTO auth.users (id, email) VALUES ($1, $2)", user_id, f"{user_id}@example.com")
    await test_database.execute(
        "UPDATE user_profiles SET subscription_tier = $2, premium_features = $3 WHERE user_id = $1",
        user_id,
        tier,
        {"admin": is_admin},
    )
    return user_id


async def test_the_runbooks_reset_gives_the_quota_back_at_once_and_keeps_what_is_held(
    test_database: TestDatabase,
) -> None:
    user_id, other_id = new_id(), new_id()
    async with metering_of(test_database) as database, test_database.connect_as("venture_operator") as operator:
        for owner_id in (user_id, other_id):
            hold = await reserve(database, owner_id)
            await finish(database, a_finished_run(owner_id, hold.id))
        open_hold = await reserve(database, user_id)
        assert len(await operator.fetch(TOP_USAGE)) == 4

        assert await operator.execute(reset_user(user_id)) == "DELETE 2"

        assert await counters(test_database, user_id) == {"runs": (0, 1), "tokens": (0, 1_000)}
        assert await counters(test_database, other_id) == {"runs": (1, 0), "tokens": (700, 0)}
        assert await has_no_drift(test_database)
        await finish(database, a_finished_run(user_id, open_hold.id))
    assert await counters(test_database, user_id) == {"runs": (1, 0), "tokens": (700, 0)}
    adjustments = await test_database.fetch(
        "SELECT metric_type, amount, attributes FROM metering.usage_ledger WHERE kind = 'adjustment' ORDER BY 1"
    )
    assert [tuple(row.values()) for row in adjustments] == [
        ("runs", -1, {"by": "venture_operator"}),
        ("tokens", -700, {"by": "venture_operator"}),
    ]
    assert await has_no_drift(test_database)


async def test_the_runbooks_reset_of_the_free_tier_leaves_the_others_alone(test_database: TestDatabase) -> None:
    free_id, paying_id = await a_user(test_database), await a_user(test_database, tier="pro")
    async with metering_of(test_database) as database, test_database.connect_as("venture_operator") as operator:
        for user_id in (free_id, paying_id):
            hold = await reserve(database, user_id)
            await finish(database, a_finished_run(user_id, hold.id))
        await operator.execute(RESET_FREE_TIER)
    assert await counters(test_database, free_id) == {}
    assert await counters(test_database, paying_id) == {"runs": (1, 0), "tokens": (700, 0)}
    assert await has_no_drift(test_database)


async def test_resets_amid_reservations_and_settlements_lose_nothing(test_database: TestDatabase) -> None:
    user_id = new_id()

    async def run_once() -> None:
        hold_id = new_id()
        while True:
            try:
                await reserve(database, user_id, hold_id=hold_id)
                await finish(database, a_finished_run(user_id, hold_id))
            except DatabaseUnavailable:  # gave way to the operator in a deadlock
                continue
            return

    async def reset_often() -> None:
        async with test_database.connect_as("venture_operator") as operator:
            for _ in range(30):
                await operator.execute(reset_user(user_id))

    async with metering_of(test_database) as database:
        await set_tier(database, user_id, "pro")
        await asyncio.gather(*(run_once() for _ in range(100)), reset_often())
    booked = await test_database.fetchval(
        "SELECT sum(amount) FROM metering.usage_ledger WHERE kind = 'usage' AND metric_type = 'runs'"
    )
    assert booked == 100
    assert await has_no_drift(test_database)


@pytest.mark.parametrize("role", ["venture_metering", "venture_operator", "postgres"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE metering.usage_ledger SET amount = 2",
        "UPDATE metering.usage_ledger SET user_id = 'somebody'",
        "DELETE FROM metering.usage_ledger",
        "TRUNCATE metering.usage_ledger",
    ],
)
async def test_the_ledger_is_append_only(test_database: TestDatabase, role: str, statement: LiteralString) -> None:
    user_id = new_id()
    async with metering_of(test_database) as database:
        await finish(database, a_finished_run(user_id, new_id()))
    if role == "postgres":  # grants do not bind a superuser, the trigger does
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await test_database.execute(statement)
    else:
        async with test_database.connect_as(role) as connection:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await connection.execute(statement)
    assert await test_database.fetchval("SELECT count(*) FROM metering.usage_ledger") == 2


async def test_a_user_sees_the_own_usage_alone_and_an_admin_everybodys(test_database: TestDatabase) -> None:
    user_id, other_id = await a_user(test_database), await a_user(test_database)
    admin_id = await a_user(test_database, is_admin=True)
    async with metering_of(test_database) as database:
        for owner_id in (user_id, other_id):
            await set_tier(database, owner_id, "pro")
            await finish(database, a_finished_run(owner_id, new_id()))

        async def owners_seen_by(viewer_id: UUID | None, sql: LiteralString) -> set[str]:
            claims = {} if viewer_id is None else {"sub": str(viewer_id), "role": "authenticated"}
            async with database.transaction_as(claims) as conn:
                return {row["user_id"] for row in await conn.fetch(sql)}

        tables: tuple[LiteralString, ...] = (
            "SELECT user_id FROM public.usage_metrics",
            "SELECT user_id FROM metering.usage_ledger",
            "SELECT user_id FROM metering.entitlements",
        )
        for table in tables:
            assert await owners_seen_by(user_id, table) == {str(user_id)}
            assert await owners_seen_by(admin_id, table) == {str(user_id), str(other_id)}
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await owners_seen_by(None, table)
        for forbidden in ("SELECT user_id FROM metering.holds", "DELETE FROM public.usage_metrics RETURNING user_id"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await owners_seen_by(user_id, forbidden)


async def test_entitlements_in_any_order_end_with_the_highest_version(test_database: TestDatabase) -> None:
    user_id = new_id()
    versions = {1: "free", 2: "pro", 3: "pro+", 4: "enterprise", 5: "pro"}

    async with metering_of(test_database) as database:
        for order in ([5, 4, 3, 2, 1], [3, 5, 1, 4, 2], [1, 2, 3, 4, 5]):
            await test_database.execute("DELETE FROM metering.entitlements")
            for version in order:
                await set_tier(database, user_id, versions[version], version=version)
            async with database.transaction() as conn:
                assert (await accounts.get_account(conn, PLANS, str(user_id))).tier == "pro"
        await test_database.execute("DELETE FROM metering.entitlements")
        await asyncio.gather(*(set_tier(database, user_id, tier, version=v) for v, tier in versions.items()))
        assert await test_database.fetchval("SELECT version FROM metering.entitlements") == 5


async def test_a_deleted_account_leaves_only_an_anonymous_ledger(test_database: TestDatabase) -> None:
    user_id, other_id = new_id(), new_id()
    async with metering_of(test_database) as database:
        for owner_id in (user_id, other_id):
            await set_tier(database, owner_id, "pro")
            await finish(database, a_finished_run(owner_id, new_id()))
        running = await reserve(database, user_id)
        for _ in range(2):
            async with database.transaction() as conn:
                await consumers.on_user_deleted(UserDeleted(user_id=user_id), conn)

        # What comes late finds the mark of the deleted account.
        await set_tier(database, user_id, "enterprise", version=99)
        await finish(database, a_finished_run(user_id, running.id))
        await finish(database, a_finished_run(user_id, running.id))
        async with database.transaction() as conn:
            requested = RunRequested(run_id=running.id, user_id=user_id, task="hello", max_output_tokens=10)
            await consumers.on_run_requested(requested, conn, plans=PLANS)
            await operations.answer_proposal(conn, PLANS, run_id=new_id(), user_id=user_id, amounts={})
        with pytest.raises(AccountDeleted):
            await reserve(database, user_id)

    assert await counters(test_database, user_id) == {}
    for table in ("metering.holds", "metering.thresholds", "metering.usage_ledger"):
        rows = await test_database.fetch(f"SELECT 1 FROM {table} WHERE user_id = $1", str(user_id))  # noqa: S608
        assert rows == []
    kept = await test_database.fetch(
        """
        SELECT sum(amount)::int AS tokens, count(DISTINCT user_id)::int AS owners FROM metering.usage_ledger
        WHERE metric_type = 'tokens' AND user_id LIKE 'erased:%'
        """
    )
    assert kept == [{"tokens": 1_400, "owners": 1}]
    assert await counters(test_database, other_id) == {"runs": (1, 0), "tokens": (700, 0)}
    erased = await events(test_database, UserErasedByMetering.type)
    assert {event["user_id"] for event in erased} == {str(user_id)}
    assert await has_no_drift(test_database)


async def test_the_operators_delete_wins_a_deadlock(test_database: TestDatabase) -> None:
    async with test_database.connect_as("venture_operator") as operator:
        assert await operator.fetchval("SHOW deadlock_timeout") == "10s"
