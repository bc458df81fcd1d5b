"""What a run request is, what it may cost at most, and the shapes clients rely on. Pure."""

from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal
from uuid import UUID

import orjson
from pydantic import Field, JsonValue

from libs.common.errors import NotFound
from libs.common.inputs import Input

MAX_CONTEXT_BYTES: Final = 100_000
DEFAULT_OUTPUT_TOKENS: Final = 1_000
PROMPT_OVERHEAD_TOKENS: Final = 1_000
"""What instructions, atoms and profile add to the task at most: agents cuts the assembled prompt to it."""
TERMINAL_EVENTS: Final = frozenset({"run.succeeded", "run.failed", "run.cancelled", "run.timed_out"})

Slider = Annotated[int, Field(ge=0, le=100)]


class RunNotFound(NotFound):
    code = "gateway.run_not_found"


class VibeInput(Input):
    playfulness: Slider | None = None
    revenue_focus: Slider | None = None
    investor_perspective: Slider | None = None


class RunInput(Input):
    """The body of POST /v1/runs. No field of it ever becomes an address, a path or a statement."""

    task: Annotated[str, Field(min_length=1, max_length=20_000)]
    agent_type: Literal["suggestion", "generator", "orchestrator"] = "suggestion"
    model: (
        Annotated[str, Field(max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*(:[A-Za-z0-9][A-Za-z0-9._+-]*)?$")]
        | None
    ) = None
    vibe: VibeInput | None = None
    template_id: UUID | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict)
    max_output_tokens: Annotated[int, Field(ge=1, le=8_192)] = DEFAULT_OUTPUT_TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class Acceptance:
    """A run that is held for and now becomes a promise; its answer is kept under `key` if there is one."""

    run_id: UUID
    user_id: UUID
    body: RunInput
    key: str | None
    traceparent: str | None


def token_bound(body: RunInput) -> int:
    """The most tokens this run can use, held before it starts.

    A token is at least two bytes of ordinary text in every tokeniser we meet; the rest is bounded by configuration.
    """
    sent_bytes = len(body.task.encode()) + len(orjson.dumps(body.context))
    return -(-sent_bytes // 2) + PROMPT_OVERHEAD_TOKENS + body.max_output_tokens


def accepted(run_id: UUID) -> dict[str, Any]:
    base = f"/v1/runs/{run_id}"
    return {
        "id": str(run_id),
        "status": "queued",
        "links": {"self": base, "events": f"{base}/events", "cancel": f"{base}/cancel"},
    }


def not_started_yet(run_id: UUID, *, agent_type: str, created_at: str) -> dict[str, Any]:
    """The run between acceptance and its first row: accepted here, not yet known to agents."""
    return {
        "id": str(run_id),
        "status": "queued",
        "agent_type": agent_type,
        "model_used": None,
        "output": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
        "cost_usd": 0,
        "created_at": created_at,
        "finished_at": None,
        "error": None,
    }
