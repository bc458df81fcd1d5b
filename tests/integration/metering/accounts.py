"""What metering's tests say often: connect as the service, name a tier, ask for a hold, finish a run."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from libs.common import database as db
from libs.common.database import Database
from libs.common.events.agents import RunFinished
from libs.common.events.gateway import EntitlementsChanged
from libs.common.ids import new_id
from libs.common.plans import Plans, load_plans
from services.metering import consumers, operations
from services.metering.domain import Amounts, Hold, Metric
from tests.harness.database import TestDatabase

PLANS = load_plans()


def plans_with(**limits: int) -> Plans:
    """The shipped plans with other limits for the free tier."""
    free = PLANS.tier("free").model_copy(update={"limits": limits})
    return PLANS.model_copy(update={"tiers": {**PLANS.tiers, "free": free}})


@asynccontextmanager
async def metering_of(test_database: TestDatabase) -> AsyncGenerator[Database, None]:
    async with db.connect(test_database.url("venture_metering"), application_name="test-metering") as database:
        yield database


async def set_tier(database: Database, user_id: UUID, tier: str, *, version: int = 2) -> None:
    async with database.transaction() as conn:
        event = EntitlementsChanged(user_id=user_id, version=version, tier=tier, status="active")
        await consumers.on_entitlements_changed(event, conn)


async def reserve(
    database: Database,
    user_id: UUID,
    *,
    hold_id: UUID | None = None,
    amounts: Amounts | None = None,
    plans: Plans = PLANS,
) -> Hold:
    async with database.transaction() as conn:
        return await operations.reserve_usage(
            conn,
            plans,
            hold_id=hold_id or new_id(),
            user_id=user_id,
            amounts=amounts or {Metric.RUNS: 1, Metric.TOKENS: 1_000},
        )


def a_finished_run(user_id: UUID, run_id: UUID, **facts: Any) -> RunFinished:
    values: dict[str, Any] = {
        "outcome": "succeeded",
        "is_billable": True,
        "agent_type": "suggestion",
        "model_used": "offline",
        "input_tokens": 300,
        "output_tokens": 400,
        "cost_micro_usd": 21,
        **facts,
    }
    return RunFinished(user_id=user_id, run_id=run_id, **values)


async def finish(database: Database, event: RunFinished, *, plans: Plans = PLANS) -> None:
    async with database.transaction() as conn:
        await consumers.on_run_finished(event, conn, plans=plans)


async def counters(test_database: TestDatabase, user_id: UUID) -> dict[str, tuple[int, int]]:
    """(used, held) by metric, over all periods of the user."""
    rows = await test_database.fetch(
        "SELECT metric_type, metric_value, held_value FROM usage_metrics WHERE user_id = $1", str(user_id)
    )
    return {row["metric_type"]: (row["metric_value"], row["held_value"]) for row in rows}


async def events(test_database: TestDatabase, event_type: str) -> list[dict[str, Any]]:
    rows = await test_database.fetch("SELECT data FROM metering.outbox WHERE type = $1 ORDER BY id", event_type)
    return [row["data"] for row in rows]


async def expire_holds(test_database: TestDatabase, *, by_s: int = 61) -> None:
    """Let time pass for every open hold."""
    await test_database.execute(
        "UPDATE metering.holds SET expires_at = expires_at - make_interval(secs => $1) WHERE state = 'held'", by_s
    )


async def has_no_drift(test_database: TestDatabase) -> bool:
    return not await test_database.fetch("SELECT user_id FROM metering.drift")
