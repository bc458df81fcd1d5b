"""Writes on webhook endpoints, background events and the runs they propose. Each is safe to repeat."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import structlog

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.agents import BackgroundEventReceived, RunProposed
from libs.common.ids import new_id
from libs.common.plans import Plans
from services.agents.background import queries
from services.agents.background.domain import (
    BACKGROUND_PRIORITY,
    PROPOSED_OUTPUT_TOKENS,
    SECRET_OVERLAP,
    Delivery,
    EndpointNotFound,
    WebhookKind,
    asks_for_suggestion,
    new_secret,
    suggestion_task,
)
from services.agents.background.queries import Endpoint, EndpointWithSecret, NewEndpoint, Proposal
from services.agents.prompts.domain import held_input_tokens
from services.agents.runs import operations as runs
from services.agents.runs.domain import NewRun
from services.agents.users import queries as user_queries

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedEndpoint:
    """The only answer that ever shows the secret."""

    endpoint: Endpoint
    secret: str


async def create_endpoint(conn: Connection, new: NewEndpoint) -> CreatedEndpoint:
    secret, endpoint_id = _new_secret(new.kind), new_id()
    created_at = await queries.insert_endpoint(conn, endpoint_id, new, secret=secret)
    endpoint = Endpoint(
        id=endpoint_id,
        kind=new.kind,
        name=new.name,
        auto_suggest=new.auto_suggest,
        approval_required=new.approval_required,
        created_at=created_at,
    )
    return CreatedEndpoint(endpoint=endpoint, secret=secret)


async def rotate_endpoint(conn: Connection, endpoint_id: UUID, *, user_id: str) -> str:
    """Return the new secret; the one before is accepted for a day more. Raises EndpointNotFound."""
    kind = await queries.find_kind(conn, endpoint_id, user_id=user_id)
    if kind is None:
        raise EndpointNotFound
    secret = _new_secret(kind)
    overlap_s = SECRET_OVERLAP.total_seconds()
    if not await queries.rotate_secret(conn, endpoint_id, user_id=user_id, secret=secret, overlap_s=overlap_s):
        raise EndpointNotFound
    return secret


async def delete_endpoint(conn: Connection, endpoint_id: UUID, *, user_id: str) -> None:
    """Raises EndpointNotFound."""
    if not await queries.delete_endpoint(conn, endpoint_id, user_id=user_id):
        raise EndpointNotFound


def _new_secret(kind: str) -> str:
    return new_secret(WebhookKind(kind), secrets.token_bytes(32))


async def receive_delivery(
    conn: Connection, endpoint: EndpointWithSecret, delivery: Delivery, *, plans: Plans
) -> UUID | None:
    """Store a verified delivery once, tell of it, and propose a run where the endpoint wants one.

    Returns the event's id; None if the delivery is known or its user is gone.
    """
    if not await user_queries.hold_user(conn, endpoint.user_id):
        return None
    event_id = new_id()
    received_at = await queries.insert_background_event(
        conn,
        event_id=event_id,
        endpoint=endpoint,
        kind=delivery.kind,
        delivery_id=delivery.id,
        payload=delivery.summary,
    )
    if received_at is None:
        return None
    await outbox.add(
        conn,
        BackgroundEventReceived(
            user_id=UUID(endpoint.user_id),
            background_event_id=event_id,
            source=endpoint.kind,
            kind=delivery.kind,
            received_at=received_at,
        ),
    )
    if endpoint.auto_suggest and asks_for_suggestion(endpoint.kind, delivery.kind, delivery.summary):
        await _propose_run(conn, endpoint, delivery, event_id=event_id, plans=plans)
    return event_id


async def _propose_run(
    conn: Connection, endpoint: EndpointWithSecret, delivery: Delivery, *, event_id: UUID, plans: Plans
) -> None:
    tier = plans.tier(await user_queries.find_tier(conn, endpoint.user_id) or "free")
    if not tier.features.get("auto_suggest"):
        refusal = {"code": "agents.plan_lacks_auto_suggest", "tier": tier.name}
        await queries.mark_run_refused(conn, event_id, refusal)
        return
    proposal = Proposal(
        run_id=new_id(),
        user_id=endpoint.user_id,
        background_event_id=event_id,
        task=suggestion_task(endpoint.kind, delivery.kind, delivery.summary),
        max_output_tokens=PROPOSED_OUTPUT_TOKENS,
        approval_required=endpoint.approval_required,
    )
    await queries.insert_proposal(conn, proposal)
    await outbox.add(
        conn,
        RunProposed(
            run_id=proposal.run_id,
            user_id=UUID(endpoint.user_id),
            max_tokens=held_input_tokens(proposal.task, {}) + proposal.max_output_tokens,
        ),
    )


async def queue_proposed_run(conn: Connection, run_id: UUID, *, user_id: UUID, traceparent: str | None) -> None:
    """Metering holds the run's cost: it becomes a run like any other."""
    await user_queries.hold_user(conn, str(user_id))  # user before run, as everywhere: see lease_queries
    proposal = await queries.take_proposal(conn, run_id)
    if proposal is None:
        log.info("proposal_gone", run_id=str(run_id))
        return
    run = NewRun(
        id=proposal.run_id,
        user_id=proposal.user_id,
        agent_type="suggestion",
        task=proposal.task,
        max_output_tokens=proposal.max_output_tokens,
        background_event_id=proposal.background_event_id,
        priority=BACKGROUND_PRIORITY,
        is_approval_required=proposal.approval_required,
        traceparent=traceparent,
    )
    if await runs.accept_runs(conn, [run]):
        await queries.mark_run_granted(conn, proposal.background_event_id, proposal.run_id)


async def drop_proposed_run(conn: Connection, run_id: UUID, *, user_id: UUID, refusal: Mapping[str, Any]) -> None:
    """Metering refused: the background event keeps the reason, and there is no run."""
    await user_queries.hold_user(conn, str(user_id))
    proposal = await queries.take_proposal(conn, run_id)
    if proposal is not None:
        await queries.mark_run_refused(conn, proposal.background_event_id, refusal)
