"""What must have happened before an event can have its effect. Most events need nothing."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from libs.common.events.agents import RunProposed
from libs.common.events.metering import HoldDenied, HoldGranted, UsageSettled
from libs.common.ids import new_id
from tests.builders import an_event
from tests.harness.subscriptions import ALL, Subscribed
from tests.integration.standing.desk import Desk, body_of

History = Callable[[Desk, Any], Awaitable[None]]


async def prepare(desk: Desk, one: Subscribed, event: Any) -> None:
    if one.service == "gateway":
        await _has_signed_up(desk, event)
    history = HISTORIES.get(one.queue)
    if history is not None:
        await history(desk, event)


async def _has_signed_up(desk: Desk, event: Any) -> None:
    await desk.place.database.execute(
        "INSERT INTO auth.users (id, email) VALUES ($1, $2)", event.user_id, f"{event.user_id}@example.com"
    )


async def _was_proposed_to_metering(desk: Desk, event: Any) -> None:
    (proposed,) = (one for one in ALL if one.service == "metering" and one.event is RunProposed)
    proposal = an_event(RunProposed, user_id=event.user_id, run_id=event.run_id, max_tokens=1_000)
    assert await desk.deliver(proposed, body_of(proposal)) == ["done"]


async def _was_proposed_by_agents(desk: Desk, event: Any) -> None:
    background_event_id = new_id()
    await desk.place.database.execute(
        """
        INSERT INTO background_events (id, user_id, source, kind, endpoint_id, delivery_id)
        VALUES ($1, $2, 'github', 'push', gen_random_uuid(), '1')
        """,
        background_event_id,
        str(event.user_id),
    )
    await desk.place.database.execute(
        """
        INSERT INTO agents.proposals (run_id, user_id, background_event_id, task, max_output_tokens)
        VALUES ($1, $2, $3, 'Look at this push.', 100)
        """,
        event.run_id,
        str(event.user_id),
        background_event_id,
    )


async def _pays_for_a_metered_plan(desk: Desk, event: Any) -> None:
    await desk.place.database.execute(
        """
        INSERT INTO billing.accounts (user_id, tier, status, stripe_customer_id) VALUES ($1, 'pro', 'active', 'cus_1')
        """,
        event.user_id,
    )


HISTORIES: Final[Mapping[str, History]] = {
    "metering.agents.run_finished.v1": _was_proposed_to_metering,
    f"billing.{UsageSettled.type}": _pays_for_a_metered_plan,
    f"agents.{HoldGranted.type}": _was_proposed_by_agents,
    f"agents.{HoldDenied.type}": _was_proposed_by_agents,
}
