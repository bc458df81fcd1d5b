"""Writes of runs: claiming a key, and accepting."""

from typing import Any
from uuid import UUID

import orjson

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.gateway import RunRequested
from services.gateway.accounts import queries as accounts
from services.gateway.idempotency import queries as keys
from services.gateway.runs.domain import RunInput, accepted


async def accept_run(conn: Connection, *, user_id: UUID, run_id: UUID, body: RunInput, key: str | None) -> bytes:
    """Record the acceptance: the request in the outbox, and the answer under its key. Return the answer's bytes."""
    profile = await accounts.find_profile(conn, user_id)
    await outbox.add(conn, _requested(user_id, run_id, body, profile or {}))
    answer = orjson.dumps(accepted(run_id))
    if key is not None:
        await keys.store_response(conn, user_id=user_id, key=key, status=202, body=answer)
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
