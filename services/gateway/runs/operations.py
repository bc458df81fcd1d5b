"""Writes of runs: accepting."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.gateway import RunRequested
from services.gateway.idempotency import queries as keys
from services.gateway.idempotency.queries import Kept
from services.gateway.runs.domain import Acceptance, accepted


async def accept_runs(conn: Connection, asks: Sequence[tuple[Acceptance, Mapping[str, Any]]]) -> list[bytes]:
    """Record the acceptances, each with its user's profile; return the answers.

    The requests go into the outbox, the answers under their keys. One statement, so that it needs no transaction
    around it.
    """
    requested = [(_requested(run, profile), run.traceparent) for run, profile in asks]
    answers = [orjson.dumps(accepted(run.run_id)) for run, _ in asks]
    kept = [
        Kept(run.user_id, run.key, status=202, body=answer, headers={})
        for (run, _), answer in zip(asks, answers, strict=True)
        if run.key is not None
    ]
    if kept:
        await keys.store_responses_with(conn, kept, requested)
    else:
        await outbox.add_traced(conn, requested)
    return answers


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


def _requested(run: Acceptance, profile: Mapping[str, Any]) -> RunRequested:
    body = run.body
    return RunRequested(
        event_id=run.run_id,  # the acceptance is found by the run's id, and a second one under it is impossible
        run_id=run.run_id,
        user_id=run.user_id,
        task=body.task,
        agent_type=body.agent_type,
        model=body.model,
        vibe=body.vibe.model_dump(exclude_none=True) if body.vibe is not None else {},
        template_id=body.template_id,
        context=body.context,
        max_output_tokens=body.max_output_tokens,
        profile={name: profile[name] for name in _PROMPT_FIELDS if profile.get(name)},
    )
