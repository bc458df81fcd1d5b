"""A run as the API shows it, the same bytes wherever it comes from. Pure."""

from typing import Any, Final

import orjson

from libs.common.clock import iso_millis
from services.agents.runs.domain import Run

MICRO: Final = 1_000_000


def render_run(run: Run) -> dict[str, Any]:
    return {
        "id": str(run.id),
        "status": run.status.value,
        "agent_type": run.agent_type,
        "task": run.task,
        "model_requested": run.model_requested,
        "model_used": run.model_used,
        "output": run.output,
        "usage": {"input_tokens": run.input_tokens, "output_tokens": run.output_tokens},
        # A number with exactly six decimals, written from the integer: it never passes through a float.
        "cost_usd": orjson.Fragment(f"{run.cost_micro_usd // MICRO}.{run.cost_micro_usd % MICRO:06d}"),
        "error": run.error,
        "template_id": str(run.template_id) if run.template_id else None,
        "background_event_id": str(run.background_event_id) if run.background_event_id else None,
        "warnings": run.warnings,
        "atoms": run.atoms,
        "approval": run.approval,
        "is_bookmarked": run.is_bookmarked,
        "attempt": run.attempt,
        "cancel_requested_at": iso_millis(run.cancel_requested_at) if run.cancel_requested_at else None,
        "created_at": iso_millis(run.created_at),
        "started_at": iso_millis(run.started_at) if run.started_at else None,
        "finished_at": iso_millis(run.finished_at) if run.finished_at else None,
    }
