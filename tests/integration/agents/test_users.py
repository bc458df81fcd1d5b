"""Users come, change their tier, and are erased; operators find what is left with the runbook's SQL."""

import asyncio
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from libs.common.database import Database
from libs.common.events.gateway import UserCreated, UserDeleted
from libs.common.ids import new_id
from services.agents import consumers
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.services import Place, RunningService, service_headers
from tests.integration.agents.workshop import (
    FakeModel,
    a_request,
    agents,
    emitted,
    get,
    has_status,
    request_run,
    set_tier,
)

TABLES_OF_A_USER = (
    "SELECT (SELECT count(*) FROM agent_runs WHERE user_id = $1)"
    " + (SELECT count(*) FROM vibe_configs WHERE user_id = $1)"
    " + (SELECT count(*) FROM user_template_customizations WHERE user_id = $1)"
    " + (SELECT count(*) FROM background_events WHERE user_id = $1)"
    " + (SELECT count(*) FROM agents.webhook_endpoints WHERE user_id = $1)"
    " + (SELECT count(*) FROM agents.proposals WHERE user_id = $1)"
)

ORPHANED_RUNS = """
SELECT ar.*
FROM agent_runs ar
LEFT JOIN user_profiles up ON ar.user_id = up.user_id::text
WHERE up.user_id IS NULL;
"""
ORPHANED_EVENTS = """
SELECT be.*
FROM background_events be
LEFT JOIN user_profiles up ON be.user_id = up.user_id::text
WHERE up.user_id IS NULL;
"""


async def delete_user(database: Database, user_id: UUID) -> None:
    async with database.transaction() as conn:
        await consumers.on_user_deleted(UserDeleted(user_id=user_id), conn)


async def create_user(database: Database, user_id: UUID) -> None:
    async with database.transaction() as conn:
        await consumers.on_user_created(UserCreated(user_id=user_id), conn)


async def test_a_new_user_gets_neutral_sliders_and_keeps_own_ones(
    place: Place, database: Database, user_id: UUID
) -> None:
    await create_user(database, user_id)
    await place.database.execute("UPDATE vibe_configs SET playfulness = 99 WHERE user_id = $1", str(user_id))
    await create_user(database, user_id)
    async with agents(place, FakeModel()) as service:
        vibe = await get(service, user_id, "/internal/vibe-config")
    assert vibe == {"playfulness": 99, "revenue_focus": 50, "investor_perspective": 50}


async def test_a_higher_tier_runs_more_at_once_and_older_news_change_nothing(
    place: Place, database: Database, user_id: UUID
) -> None:
    await set_tier(database, user_id, "pro", version=5)
    await set_tier(database, user_id, "free", version=4)
    model = FakeModel(waits=True)
    async with agents(place, model):
        runs = [await request_run(database, user_id) for _ in range(5)]

        async def three_at_work() -> bool:
            return model.at_work == 3

        await eventually(three_at_work)
        model.go_on.set()
        for run_id in runs:
            await has_status(place.database, run_id, "succeeded")
    assert model.most_at_work == 3


async def test_an_unknown_tier_runs_as_many_as_the_free_one(place: Place, database: Database, user_id: UUID) -> None:
    await set_tier(database, user_id, "platinum-typo")
    model = FakeModel(pieces=["x"] * 20)
    async with agents(place, model):
        for run_id in [await request_run(database, user_id) for _ in range(3)]:
            await has_status(place.database, run_id, "succeeded")
    assert model.most_at_work == 1


async def test_erasing_a_user_deletes_everything_and_stops_what_runs(
    place: Place, database: Database, user_id: UUID
) -> None:
    model = FakeModel(waits=True)
    async with agents(place, model, agents_heartbeat_s=0.2) as service:
        await create_user(database, user_id)
        headers = {"kind": "generic", "name": "hook"}
        await post(service, user_id, "/internal/webhook-endpoints", headers)
        await post(service, user_id, "/internal/templates", {"name": "n", "instructions": "i"})
        for _ in range(3):
            await request_run(database, user_id)

        async def is_running() -> bool:
            return model.at_work == 1

        async def has_stopped() -> bool:
            return model.at_work == 0

        await eventually(is_running)
        await delete_user(database, user_id)
        await delete_user(database, user_id)
        await eventually(has_stopped)
    assert await place.database.fetchval(TABLES_OF_A_USER, str(user_id)) == 0
    assert await place.database.fetchval("SELECT count(*) FROM agents.run_events") == 0
    assert {it["user_id"] for it in await emitted(place.database, "agents.user_erased.v1")} == {str(user_id)}
    assert await emitted(place.database, "agents.run_finished.v1") == []


async def post(service: RunningService, user_id: UUID, path: str, body: dict[str, Any]) -> Any:
    answer = await service.client.post(path, json=body, headers=service_headers("agents", user_id=user_id))
    assert answer.status_code == 201, answer.text
    return answer.json()


async def test_events_that_arrive_behind_an_erasure_leave_nothing(
    database: Database, test_database: TestDatabase, user_id: UUID
) -> None:
    await delete_user(database, user_id)
    await request_run(database, user_id)
    await create_user(database, user_id)
    await set_tier(database, user_id, "pro", version=9)
    assert await test_database.fetchval(TABLES_OF_A_USER, str(user_id)) == 0
    assert (
        await test_database.fetchval("SELECT tier FROM agents.entitlements WHERE user_id = $1", str(user_id)) == "free"
    )


async def test_no_run_slips_in_beside_an_erasure(database: Database, test_database: TestDatabase) -> None:
    users = [new_id() for _ in range(30)]
    for user_id in users[::2]:
        await set_tier(database, user_id, "pro")
    await asyncio.gather(
        *(request_run(database, user_id) for user_id in users),
        *(delete_user(database, user_id) for user_id in users),
        *(request_run(database, user_id) for user_id in users),
    )
    assert await test_database.fetchval("SELECT count(*) FROM agent_runs") == 0


async def test_an_erasure_waits_for_a_run_that_is_just_being_accepted(
    database: Database, test_database: TestDatabase, user_id: UUID
) -> None:
    await set_tier(database, user_id, "free")

    async def waits_or_is_over() -> bool:
        waiting = await test_database.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        return bool(waiting) or erasure.done()

    async with database.transaction() as conn:
        await consumers.on_run_requested(a_request(user_id), conn)
        erasure = asyncio.create_task(delete_user(database, user_id))
        await eventually(waits_or_is_over)
    await erasure
    assert await test_database.fetchval("SELECT count(*) FROM agent_runs") == 0


async def test_the_runbook_s_orphan_queries_run_as_the_operator(
    database: Database, test_database: TestDatabase, user_id: UUID
) -> None:
    run_id = await request_run(database, user_id)
    await test_database.execute(
        "INSERT INTO background_events (id, user_id, source, kind, endpoint_id, delivery_id)"
        " VALUES ($1, $2, 'generic', 'x', $1, 'd')",
        new_id(),
        str(user_id),
    )
    async with test_database.connect_as("venture_operator") as operator:
        assert [row["id"] for row in await operator.fetch(ORPHANED_RUNS)] == [run_id]
        assert len(await operator.fetch(ORPHANED_EVENTS)) == 1
        for statement in (
            "SELECT secret FROM agents.webhook_endpoints",
            "UPDATE agent_runs SET task = ''",
            "DELETE FROM agent_runs",
        ):
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await operator.execute(statement)


async def test_users_see_their_own_rows_alone_and_admins_all(
    database: Database, test_database: TestDatabase, user_id: UUID
) -> None:
    admin = new_id()
    await test_database.execute("INSERT INTO auth.users (id, email) VALUES ($1, 'admin@example.com')", admin)
    await test_database.execute(
        "UPDATE user_profiles SET premium_features = '{\"admin\": true}' WHERE user_id = $1", admin
    )
    await request_run(database, user_id)
    await request_run(database, new_id())

    async def visible(sub: UUID) -> tuple[int, int]:
        async with database.transaction_as({"sub": str(sub), "role": "authenticated"}) as conn:
            return (
                await conn.fetchval("SELECT count(*) FROM public.agent_runs"),
                await conn.fetchval("SELECT count(*) FROM agents.run_events"),
            )

    assert await visible(user_id) == (1, 1)
    assert await visible(new_id()) == (0, 0)
    assert await visible(admin) == (2, 2)
    async with database.transaction_as({"role": "anon"}) as conn:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await conn.fetchval("SELECT count(*) FROM public.agent_runs")


async def test_users_cannot_read_secrets_or_touch_the_queue(database: Database, user_id: UUID) -> None:
    for statement in (
        "SELECT secret FROM agents.webhook_endpoints",
        "UPDATE public.agent_runs SET priority = 9",
        "SELECT 1 FROM agents.outbox",
        "SELECT 1 FROM agents.entitlements",
        "SELECT 1 FROM agents.proposals",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            async with database.transaction_as({"sub": str(user_id), "role": "authenticated"}) as conn:
                await conn.execute(statement)  # pyright: ignore[reportArgumentType] - a loop over literals
