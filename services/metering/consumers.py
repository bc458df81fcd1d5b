"""Events metering consumes: one plain function each, run in the runner's transaction."""

from collections.abc import Sequence
from functools import partial

import structlog

from libs.common.broker import Subscription
from libs.common.database import Connection
from libs.common.events.agents import RunFinished, RunProposed
from libs.common.events.gateway import EntitlementsChanged, QuotaUsed, RunRequested, UserDeleted
from libs.common.plans import Plans
from services.metering import operations
from services.metering.accounts import operations as accounts
from services.metering.domain import Amounts, Metric, cost_of_run
from services.metering.ledger.domain import Settlement

log = structlog.get_logger(__name__)


async def on_entitlements_changed(event: EntitlementsChanged, conn: Connection) -> None:
    await accounts.change_entitlements(conn, event)


async def on_run_requested(event: RunRequested, conn: Connection, *, plans: Plans) -> None:
    await on_runs_requested([event], conn, plans=plans)


async def on_runs_requested(events: Sequence[RunRequested], conn: Connection, *, plans: Plans) -> None:
    for hold_id in await operations.confirm_holds(conn, plans, {event.run_id: event.user_id for event in events}):
        log.warning("hold_reopened", hold_id=str(hold_id))


async def on_run_finished(event: RunFinished, conn: Connection, *, plans: Plans) -> None:
    await on_runs_finished([event], conn, plans=plans)


async def on_runs_finished(events: Sequence[RunFinished], conn: Connection, *, plans: Plans) -> None:
    await operations.settle_holds(conn, plans, [_settlement(event) for event in events])


def _settlement(event: RunFinished) -> Settlement:
    return Settlement(
        hold_id=event.run_id,
        user_id=event.user_id,
        used=cost_of_run(
            outcome=event.outcome,
            is_billable=event.is_billable,
            input_tokens=event.input_tokens,
            output_tokens=event.output_tokens,
        ),
        cost_micro_usd=event.cost_micro_usd if event.is_billable else 0,
        attributes={"outcome": event.outcome, "agent_type": event.agent_type, "model": event.model_used},
    )


async def on_run_proposed(event: RunProposed, conn: Connection, *, plans: Plans) -> None:
    amounts: Amounts = {Metric.RUNS: 1, Metric.TOKENS: event.max_tokens}
    await operations.answer_proposal(conn, plans, run_id=event.run_id, user_id=event.user_id, amounts=amounts)


async def on_quota_used(event: QuotaUsed, conn: Connection, *, plans: Plans) -> None:
    settlement = Settlement(hold_id=event.hold_id, user_id=event.user_id, used=event.amounts)
    await operations.settle_hold(conn, plans, settlement)


async def on_user_deleted(event: UserDeleted, conn: Connection) -> None:
    await accounts.erase_user(conn, user_id=event.user_id)


def subscriptions(plans: Plans) -> Sequence[Subscription]:
    return (
        Subscription(event=EntitlementsChanged, handler=on_entitlements_changed),
        Subscription(
            event=RunRequested,
            handler=partial(on_run_requested, plans=plans),
            many=partial(on_runs_requested, plans=plans),
            lingers=True,
        ),
        Subscription(
            event=RunFinished,
            handler=partial(on_run_finished, plans=plans),
            many=partial(on_runs_finished, plans=plans),
            lingers=True,
        ),
        Subscription(event=RunProposed, handler=partial(on_run_proposed, plans=plans)),
        Subscription(event=QuotaUsed, handler=partial(on_quota_used, plans=plans)),
        Subscription(event=UserDeleted, handler=on_user_deleted),
    )
