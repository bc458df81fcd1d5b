"""Writes of runs: claiming a key, and accepting."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import orjson

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.gateway import RunRequested
from libs.common.ids import new_id
from services.gateway.accounts import queries as accounts
from services.gateway.domain import IdempotencyKeyInFlight, IdempotencyKeyReused
from services.gateway.runs import queries
from services.gateway.runs.domain import RunInput, accepted


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The key is ours: make the resource under this id. Or `replay` is the answer that was given before."""

    resource_id: UUID
    replay: bytes | None = None
    replay_status: int = 0


def unclaimed() -> Claim:
    """What a request without a key works under: a new id, and no memory of it."""
    return Claim(resource_id=new_id())


async def claim_key(conn: Connection, *, user_id: UUID, key: str, request_hash: bytes) -> Claim:
    """Raises IdempotencyKeyReused for another body under the key, IdempotencyKeyInFlight while the first one works."""
    row = await queries.claim_key(conn, user_id=user_id, key=key, request_hash=request_hash, resource_id=new_id())
    if row["request_hash"] != request_hash:
        raise IdempotencyKeyReused("This Idempotency-Key was used with another request body.")
    if row["response_status"] is not None:
        return Claim(resource_id=row["resource_id"], replay=row["response_body"], replay_status=row["response_status"])
    if not row["is_mine"]:
        raise IdempotencyKeyInFlight("A request with this Idempotency-Key is still being worked on; try again shortly.")
    return Claim(resource_id=row["resource_id"])


async def accept_run(conn: Connection, *, user_id: UUID, run_id: UUID, body: RunInput, key: str | None) -> bytes:
    """Record the acceptance: the request in the outbox, and the answer under its key. Return the answer's bytes."""
    profile = await accounts.find_profile(conn, user_id)
    await outbox.add(conn, _requested(user_id, run_id, body, profile or {}))
    answer = orjson.dumps(accepted(run_id))
    if key is not None:
        await queries.store_response(conn, user_id=user_id, key=key, status=202, body=answer)
    return answer


_PROMPT_FIELDS = (
    "name",
    "role",
    "vertical",
    "stack",
    "tone",
    "risk_tolerance",
    "kpi_focus",
    "perspective",
    "company_context",
)


def _requested(user_id: UUID, run_id: UUID, body: RunInput, profile: dict[str, Any]) -> RunRequested:
    return RunRequested(
        event_id=run_id,  # the acceptance is found by the run's id, and a second one under it is impossible
        run_id=run_id,
        user_id=user_id,
        task=body.task,
        agent_type=body.agent_type,
        model=body.model,
        vibe=body.vibe.model_dump(exclude_none=True) if body.vibe is not None else {},
        template_id=body.template_id,
        context=body.context,
        max_output_tokens=body.max_output_tokens,
        profile={name: profile[name] for name in _PROMPT_FIELDS if profile.get(name)},
    )
