"""Any order of asks, extensions, settlements, releases, sweeps, rollovers, plan changes and grants keeps every promise.

A state machine over the real database; what each ask may get is worked out here by a formula of its own.
"""

import asyncio
from collections.abc import Coroutine, Generator
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,  # pyright: ignore[reportUnknownVariableType] - its overloads are partly untyped
    run_state_machine_as_test,
)

from libs.common.database import Database
from libs.common.events.gateway import EntitlementsChanged
from libs.common.ids import new_id
from services.metering import operations
from services.metering.accounts import operations as accounts
from services.metering.domain import HoldEnded, HoldInUse, QuotaExceeded
from services.metering.grants import operations as grants
from services.metering.jobs import sweep_holds
from services.metering.ledger.domain import Settlement
from services.metering.repairs import operations as repairs
from tests.harness.database import TestDatabase, new_database
from tests.harness.servers import Servers
from tests.integration.metering.accounts import PLANS, metering_of

LIMITS = {"free": 6, "pro": 15}
TIERS = {
    name: PLANS.tier(name).model_copy(update={"period": "subscription", "limits": {"runs": limit}})
    for name, limit in LIMITS.items()
}
PLAN = PLANS.model_copy(update={"tiers": {**PLANS.tiers, **TIERS}})
T = TypeVar("T")


class World:
    """One database and one loop for all examples; each example has a user of its own."""

    def __init__(self, servers: Servers) -> None:
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self.rows, self.database = self.run(self._open(servers))

    async def _open(self, servers: Servers) -> tuple[TestDatabase, Database]:
        rows = await self._stack.enter_async_context(new_database(servers))
        return rows, await self._stack.enter_async_context(metering_of(rows))

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def close(self) -> None:
        self.run(self._stack.aclose())
        self._runner.close()


class Metering(RuleBasedStateMachine):
    world: ClassVar[World]
    holds: Bundle[UUID] = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.user_id = new_id()
        self.tier = "free"
        self.version = 1
        self.start: datetime = self.fetchval("SELECT now() - interval '1 minute'")
        self.settled: dict[UUID, int] = {}
        self._change_plan("free", new_period=False)

    def fetchval(self, sql: str, *args: Any) -> Any:
        return self.world.run(self.world.rows.fetchval(sql, *args))

    def ceiling(self, period_start: datetime) -> tuple[int, int]:
        """What stands used and held in a period, and what may at most, in one look of our own."""
        standing, ceiling = self.fetchval(
            """
            SELECT ARRAY[
                coalesce(sum(c.metric_value + c.held_value), 0),
                greatest($3 + (SELECT coalesce(sum(amount), 0) FROM metering.grant_uses
                    WHERE user_id = $1 AND period_start = $2), coalesce(sum(c.metric_value), 0))
                + greatest(0, (SELECT coalesce(sum(amount - used_amount), 0) FROM metering.grants
                    WHERE user_id = $1 AND voided_at IS NULL AND expires_at > now())
                - (SELECT coalesce(sum(greatest(0, o.held_value - greatest(0, $3 + (
                        SELECT coalesce(sum(amount), 0) FROM metering.grant_uses
                        WHERE user_id = $1 AND period_start = o.period_start) - o.metric_value))), 0)
                    FROM usage_metrics AS o
                    WHERE o.user_id = $1 AND o.metric_type = 'runs' AND o.period_start <> $2 AND o.held_value > 0))
            ]::bigint[]
            FROM usage_metrics AS c WHERE c.user_id = $1 AND c.metric_type = 'runs' AND c.period_start = $2
            """,
            str(self.user_id),
            period_start,
            LIMITS[self.tier],
        )
        return standing, ceiling

    @rule(target=holds, amount=st.integers(1, 7))
    def ask(self, amount: int) -> Any:
        standing, ceiling = self.ceiling(self.start)
        hold_id = new_id()

        async def work() -> None:
            async with self.world.database.transaction() as conn:
                await operations.reserve_usage(
                    conn, PLAN, hold_id=hold_id, user_id=self.user_id, amounts={"runs": amount}
                )

        try:
            self.world.run(work())
        except QuotaExceeded:
            assert standing + amount > ceiling, "refused although it fits"
            return multiple()  # pyright: ignore[reportUnknownVariableType]
        assert standing + amount <= ceiling, "granted although it does not fit"
        return hold_id

    @rule(hold_id=holds, total=st.integers(1, 9))
    def extend(self, hold_id: UUID, total: int) -> None:
        start, state, amount = self._hold(hold_id)
        standing, ceiling = self.ceiling(start)
        more = total - amount

        async def work() -> None:
            async with self.world.database.transaction() as conn:
                await operations.extend_hold(conn, PLAN, hold_id=hold_id, user_id=self.user_id, totals={"runs": total})

        try:
            self.world.run(work())
        except HoldEnded:
            assert state != "held"
        except QuotaExceeded:
            assert more > 0
            assert standing + more > ceiling
        else:
            assert more <= 0 or standing + more <= ceiling

    @rule(hold_id=holds)
    def confirm(self, hold_id: UUID) -> None:
        async def work() -> None:
            async with self.world.database.transaction() as conn:
                await operations.confirm_hold(conn, PLAN, hold_id=hold_id, user_id=self.user_id)

        self.world.run(work())

    @rule(hold_id=holds)
    def release(self, hold_id: UUID) -> None:
        async def work() -> None:
            async with self.world.database.transaction() as conn:
                await operations.release_hold(conn, hold_id=hold_id, user_id=self.user_id)

        try:
            self.world.run(work())
        except HoldInUse:
            assert self.fetchval("SELECT confirmed_at IS NOT NULL FROM metering.holds WHERE id = $1", hold_id)

    @rule(hold_id=holds, share=st.integers(0, 2))
    def settle(self, hold_id: UUID, share: int) -> None:
        used = self._hold(hold_id)[2] * share // 2

        async def work() -> None:
            async with self.world.database.transaction() as conn:
                settlement = Settlement(hold_id=hold_id, user_id=self.user_id, used={"runs": used})
                await operations.settle_hold(conn, PLAN, settlement)

        self.world.run(work())
        self.settled.setdefault(hold_id, used)

    @rule(hold_id=holds)
    def refund(self, hold_id: UUID) -> None:
        if hold_id not in self.settled:
            return

        async def work() -> None:
            async with self.world.database.transaction() as conn:
                await repairs.refund_run(conn, PLAN, run_id=hold_id, by="ada", reason="sorry")

        self.world.run(work())
        self.settled[hold_id] = 0

    @rule()
    def expire_and_sweep(self) -> None:
        async def work() -> None:
            await self.world.rows.execute(
                "UPDATE metering.holds SET expires_at = now() - interval '1 s' WHERE state = 'held' AND user_id = $1",
                str(self.user_id),
            )
            await sweep_holds(self.world.database, unconfirmed_for_s=0)

        self.world.run(work())
        assert self.fetchval(
            "SELECT coalesce(sum(held_value), 0)::int FROM usage_metrics WHERE user_id = $1", str(self.user_id)
        ) == 0  # fmt: skip

    @rule()
    def roll_over(self) -> None:
        self._change_plan(self.tier, new_period=True)

    @rule(tier=st.sampled_from(sorted(LIMITS)))
    def change_tier(self, tier: str) -> None:
        self._change_plan(tier, new_period=False)

    @rule(amount=st.integers(1, 5), priority=st.integers(0, 2))
    def grant(self, amount: int, priority: int) -> None:
        async def work() -> None:
            async with self.world.database.transaction() as conn:
                await grants.add_grant(
                    conn,
                    grant_id=new_id(),
                    user_id=self.user_id,
                    metric="runs",
                    amount=amount,
                    priority=priority,
                    expires_at=None,
                    reason="goodwill",
                    granted_by="ada",
                )

        self.world.run(work())

    @rule()
    def reset(self) -> None:
        """What an operator's DELETE does; what is taken back afterwards is taken back from nothing."""
        self.world.run(self.world.rows.execute("DELETE FROM usage_metrics WHERE user_id = $1", str(self.user_id)))

    @invariant()
    def counters_equal_the_ledger_and_the_open_holds(self) -> None:
        assert self.fetchval("SELECT count(*) FROM metering.drift WHERE user_id = $1", str(self.user_id)) == 0

    @invariant()
    def each_run_stands_booked_with_what_it_used(self) -> None:
        booked = self.fetchval(
            """
            SELECT coalesce(jsonb_object_agg(run, amount), '{}') FROM (
                SELECT split_part(event_id, ':', 1) AS run, sum(amount)::int AS amount FROM metering.usage_ledger
                WHERE user_id = $1 AND source IN ('agents.run', 'metering.refund') GROUP BY 1
            ) AS runs WHERE amount <> 0
            """,
            str(self.user_id),
        )
        assert booked == {str(run): used for run, used in self.settled.items() if used}

    def _hold(self, hold_id: UUID) -> tuple[datetime, str, int]:
        (row,) = self.world.run(
            self.world.rows.fetch(
                "SELECT period_start, state, (amounts ->> 'runs')::int AS amount FROM metering.holds WHERE id = $1",
                hold_id,
            )
        )
        return row["period_start"], row["state"], row["amount"]

    def _change_plan(self, tier: str, *, new_period: bool) -> None:
        self.tier = tier
        self.version += 1
        if new_period:
            self.start = max(self.start + timedelta(microseconds=1), self.fetchval("SELECT now()"))

        async def work() -> None:
            async with self.world.database.transaction() as conn:
                event = EntitlementsChanged(
                    user_id=self.user_id,
                    version=self.version,
                    tier=tier,
                    status="active",
                    period_start=self.start,
                    period_end=self.start + timedelta(days=30),
                )
                await accounts.change_entitlements(conn, event)

        self.world.run(work())


@pytest.fixture
def machine(servers: Servers) -> Generator[type[Metering], None, None]:
    world = World(servers)
    try:
        yield type("MeteringHere", (Metering,), {"world": world})
    finally:
        world.close()


def test_any_order_of_anything_keeps_every_promise(machine: type[Metering]) -> None:
    run_state_machine_as_test(machine, settings=steps(examples=12, each=25))


def steps(*, examples: int, each: int) -> settings:
    return settings(
        max_examples=examples,
        stateful_step_count=each,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        derandomize=True,
    )
