"""All SQL on webhook endpoints, background events and proposed runs."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.database import Connection


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A webhook endpoint as users see it: without its secret."""

    id: UUID
    kind: str
    name: str
    auto_suggest: bool
    approval_required: bool
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEndpoint:
    user_id: str
    kind: str
    name: str
    auto_suggest: bool
    approval_required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointWithSecret:
    """What checking a signature needs. Never rendered, never logged."""

    id: UUID
    user_id: str
    kind: str
    secret: str
    former_secret: str | None
    auto_suggest: bool
    approval_required: bool

    @property
    def secrets(self) -> tuple[str, ...]:
        return (self.secret, self.former_secret) if self.former_secret else (self.secret,)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackgroundEvent:
    id: UUID
    source: str
    kind: str
    endpoint_id: UUID
    delivery_id: str
    payload: Mapping[str, Any]
    run_id: UUID | None
    refusal: Mapping[str, Any] | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Proposal:
    run_id: UUID
    user_id: str
    background_event_id: UUID
    task: str
    max_output_tokens: int
    approval_required: bool


async def insert_endpoint(conn: Connection, endpoint_id: UUID, new: NewEndpoint, *, secret: str) -> datetime:
    return await conn.fetchval(
        """
        INSERT INTO agents.webhook_endpoints (id, user_id, kind, name, secret, auto_suggest, approval_required)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        RETURNING created_at
        """,
        endpoint_id,
        new.user_id,
        new.kind,
        new.name,
        secret,
        new.auto_suggest,
        new.approval_required,
    )


async def find_kind(conn: Connection, endpoint_id: UUID, *, user_id: str) -> str | None:
    return await conn.fetchval(
        "SELECT kind FROM agents.webhook_endpoints WHERE id = $1 AND user_id = $2", endpoint_id, user_id
    )


async def rotate_secret(conn: Connection, endpoint_id: UUID, *, user_id: str, secret: str, overlap_s: float) -> bool:
    """Give the user's endpoint a new secret; the present one stays good for `overlap_s`. False if there is none."""
    rotated = await conn.fetchval(
        """
        UPDATE agents.webhook_endpoints
        SET former_secret = secret, former_secret_until = now() + make_interval(secs => $4), secret = $3
        WHERE id = $1 AND user_id = $2
        RETURNING true
        """,
        endpoint_id,
        user_id,
        secret,
        overlap_s,
    )
    return rotated is not None


async def delete_endpoint(conn: Connection, endpoint_id: UUID, *, user_id: str) -> bool:
    """Delete the user's endpoint; what it brought stays. False if there is none."""
    deleted = await conn.fetchval(
        "DELETE FROM agents.webhook_endpoints WHERE id = $1 AND user_id = $2 RETURNING true", endpoint_id, user_id
    )
    return deleted is not None


async def find_endpoint_with_secret(conn: Connection, endpoint_id: UUID, *, kind: str) -> EndpointWithSecret | None:
    row = await conn.fetchrow(
        """
        SELECT id, user_id, kind, secret, CASE WHEN former_secret_until > now() THEN former_secret END AS former_secret,
            auto_suggest, approval_required
        FROM agents.webhook_endpoints WHERE id = $1 AND kind = $2
        """,
        endpoint_id,
        kind,
    )
    return EndpointWithSecret(**dict(row)) if row else None


async def list_endpoints(
    conn: Connection, *, user_id: str, before: tuple[datetime, UUID] | None, limit: int
) -> list[Endpoint]:
    rows = await conn.fetch(
        """
        SELECT id, kind, name, auto_suggest, approval_required, created_at FROM agents.webhook_endpoints
        WHERE user_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
        ORDER BY created_at DESC, id DESC
        LIMIT $4
        """,
        user_id,
        *(before or (None, None)),
        limit,
    )
    return [Endpoint(**dict(row)) for row in rows]


async def insert_background_event(
    conn: Connection,
    *,
    event_id: UUID,
    endpoint: EndpointWithSecret,
    kind: str,
    delivery_id: str,
    payload: Mapping[str, Any],
) -> datetime | None:
    """Return when it was received; None if this delivery has been stored before."""
    return await conn.fetchval(
        """
        INSERT INTO public.background_events (id, user_id, source, kind, endpoint_id, delivery_id, payload)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        -- ON CONFLICT closes the race of two deliveries of the same event: the second one stores nothing.
        ON CONFLICT (endpoint_id, delivery_id) DO NOTHING
        RETURNING created_at
        """,
        event_id,
        endpoint.user_id,
        endpoint.kind,
        kind,
        endpoint.id,
        delivery_id,
        dict(payload),
    )


async def list_background_events(
    conn: Connection, *, user_id: str, before: tuple[datetime, UUID] | None, limit: int
) -> list[BackgroundEvent]:
    rows = await conn.fetch(
        """
        SELECT id, source, kind, endpoint_id, delivery_id, payload, run_id, refusal, created_at
        FROM public.background_events
        WHERE user_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
        ORDER BY created_at DESC, id DESC
        LIMIT $4
        """,
        user_id,
        *(before or (None, None)),
        limit,
    )
    return [BackgroundEvent(**dict(row)) for row in rows]


async def insert_proposal(conn: Connection, proposal: Proposal) -> None:
    await conn.execute(
        """
        INSERT INTO agents.proposals (run_id, user_id, background_event_id, task, max_output_tokens, approval_required)
        VALUES ($1, $2, $3, $4, $5, $6)
        """,
        proposal.run_id,
        proposal.user_id,
        proposal.background_event_id,
        proposal.task,
        proposal.max_output_tokens,
        proposal.approval_required,
    )


async def take_proposal(conn: Connection, run_id: UUID) -> Proposal | None:
    """Remove the proposal and return it; None if it has been answered before or its user is gone."""
    row = await conn.fetchrow(
        """
        DELETE FROM agents.proposals WHERE run_id = $1
        RETURNING run_id, user_id, background_event_id, task, max_output_tokens, approval_required
        """,
        run_id,
    )
    return Proposal(**dict(row)) if row else None


async def mark_run_granted(conn: Connection, background_event_id: UUID, run_id: UUID) -> None:
    await conn.execute("UPDATE public.background_events SET run_id = $2 WHERE id = $1", background_event_id, run_id)


async def mark_run_refused(conn: Connection, background_event_id: UUID, refusal: Mapping[str, Any]) -> None:
    await conn.execute(
        "UPDATE public.background_events SET refusal = $2 WHERE id = $1", background_event_id, dict(refusal)
    )


async def oldest_proposal_s(conn: Connection) -> float:
    age = await conn.fetchval("SELECT extract(epoch FROM now() - min(created_at)) FROM agents.proposals")
    return float(age or 0)


async def delete_all_of(conn: Connection, user_id: str) -> None:
    await conn.execute("DELETE FROM agents.proposals WHERE user_id = $1", user_id)
    await conn.execute("DELETE FROM public.background_events WHERE user_id = $1", user_id)
    await conn.execute("DELETE FROM agents.webhook_endpoints WHERE user_id = $1", user_id)
