"""Events agents consumes: one plain function each, run in the runner's transaction."""

from collections.abc import Callable, Sequence

from libs.common.broker import Subscription
from libs.common.database import Connection
from libs.common.events.gateway import EntitlementsChanged, RunRequested, UserCreated, UserDeleted
from libs.common.events.metering import HoldDenied, HoldGranted
from libs.common.telemetry import current_traceparent
from services.agents.background import operations as background
from services.agents.runs import operations as runs
from services.agents.runs.domain import NewRun
from services.agents.users import operations as users


async def on_run_requested(event: RunRequested, conn: Connection) -> None:
    await on_runs_requested([event], conn)


async def on_runs_requested(events: Sequence[RunRequested], conn: Connection) -> None:
    await runs.accept_runs(
        conn,
        [
            NewRun(
                id=event.run_id,
                user_id=str(event.user_id),
                agent_type=event.agent_type,
                task=event.task,
                model_requested=event.model,
                vibe=event.vibe,
                context=event.context,
                profile=event.profile,
                template_id=event.template_id,
                max_output_tokens=max(1, event.max_output_tokens),
                traceparent=event.traceparent,
            )
            for event in events
        ],
    )


async def on_entitlements_changed(event: EntitlementsChanged, conn: Connection) -> None:
    await users.apply_tier(conn, str(event.user_id), tier=event.tier, version=event.version)


async def on_user_created(event: UserCreated, conn: Connection) -> None:
    await users.welcome_user(conn, str(event.user_id))


async def on_user_deleted(event: UserDeleted, conn: Connection) -> None:
    await users.erase_user(conn, event.user_id)


async def on_hold_granted(event: HoldGranted, conn: Connection) -> None:
    await background.queue_proposed_run(conn, event.run_id, user_id=event.user_id, traceparent=current_traceparent())


async def on_hold_denied(event: HoldDenied, conn: Connection) -> None:
    await background.drop_proposed_run(
        conn,
        event.run_id,
        user_id=event.user_id,
        refusal={
            "code": "metering.quota_exceeded",
            "metric": event.metric,
            "limit": event.limit,
            "used": event.used,
            "held": event.held,
            "resets_at": event.resets_at.isoformat(),
        },
    )


def subscriptions(*, wake: Callable[[], None]) -> Sequence[Subscription]:
    """`wake` rouses this process's worker when a run has been queued."""
    return (
        Subscription(
            event=RunRequested, handler=on_run_requested, many=on_runs_requested, lingers_in_company=True, wake=wake
        ),
        Subscription(event=EntitlementsChanged, handler=on_entitlements_changed, wake=wake),
        Subscription(event=UserCreated, handler=on_user_created),
        Subscription(event=UserDeleted, handler=on_user_deleted),
        Subscription(event=HoldGranted, handler=on_hold_granted, wake=wake),
        Subscription(event=HoldDenied, handler=on_hold_denied),
    )
