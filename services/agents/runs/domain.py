"""The life of a run: its states, its events, how each ending is billed, and what can go wrong with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Final
from uuid import UUID

from libs.common.errors import Conflict, NotFound

MAX_ATTEMPTS: Final = 3
"""Leases that may expire under a run before it is given up: a crash is ours, three of them may be the run's."""


MAX_LESSONS: Final = 3
"""Of a user's own words on what was wrong with earlier answers, in one prompt."""


class RunNotFound(NotFound):
    code = "agents.run_not_found"

    def __init__(self) -> None:
        super().__init__("There is no such run.")


class RunNotFinished(Conflict):
    code = "agents.run_not_finished"

    def __init__(self) -> None:
        super().__init__("The run has not ended yet; there is nothing to judge.")


class NotAwaitingApproval(Conflict):
    code = "agents.run_not_awaiting_approval"

    def __init__(self) -> None:
        super().__init__("The run does not wait for this decision.")


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


class Outcome(StrEnum):
    """The four ends of a run. A run has one, and keeps it."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    TIMED_OUT = "timed_out"


TERMINAL_EVENT_TYPES: Final = frozenset(f"run.{outcome}" for outcome in Outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEvent:
    """One event of a run's stream. `seq` counts from 1 without gaps."""

    seq: int
    type: str
    data: Mapping[str, Any]

    @property
    def is_terminal(self) -> bool:
        return self.type in TERMINAL_EVENT_TYPES


@dataclass(frozen=True, slots=True, kw_only=True)
class Append:
    """One event to write under a lease."""

    run_id: UUID
    lease_token: int
    event: RunEvent


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """Tokens and their price. `is_estimated` where we counted ourselves because no provider did."""

    input_tokens: int = 0
    output_tokens: int = 0
    cost_micro_usd: int = 0
    is_estimated: bool = False

    def plus(self, other: "Usage") -> "Usage":
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            output_tokens=self.output_tokens + other.output_tokens,
            cost_micro_usd=self.cost_micro_usd + other.cost_micro_usd,
            is_estimated=self.is_estimated or other.is_estimated,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunError:
    """Why a run did not succeed, for the user: a stable code and a finished sentence without secrets."""

    code: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        return {"code": self.code, "detail": self.detail}


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputWarning:
    """What a reader of the output should know: a stable code and a finished sentence. Never quotes what it found."""

    code: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        return {"code": self.code, "detail": self.detail}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How a run ended. `is_billable` is decided here, once: false wherever we were the ones who cut it."""

    outcome: Outcome
    is_billable: bool
    usage: Usage = field(default_factory=Usage)
    output: str | None = None
    model_used: str | None = None
    error: RunError | None = None
    warnings: tuple[OutputWarning, ...] = ()
    atoms: tuple[str, ...] = ()

    @classmethod
    def succeeded(
        cls,
        *,
        output: str,
        usage: Usage,
        model_used: str,
        warnings: Sequence[OutputWarning] = (),
        atoms: Sequence[str] = (),
    ) -> "Ending":
        return cls(
            outcome=Outcome.SUCCEEDED,
            is_billable=True,
            usage=usage,
            output=output,
            model_used=model_used,
            warnings=tuple(warnings),
            atoms=tuple(atoms),
        )

    @classmethod
    def failed(cls, error: RunError, *, usage: Usage, output: str | None, model_used: str | None) -> "Ending":
        """The provider failed or refused: the user pays the tokens it reported, which are often none."""
        return cls(
            outcome=Outcome.FAILED, is_billable=True, usage=usage, output=output, model_used=model_used, error=error
        )

    @classmethod
    def crashed(cls, error: RunError, *, output: str | None = None) -> "Ending":
        """We failed, or cannot do what was asked: nothing is charged. What was said stays, as the stream has it."""
        return cls(outcome=Outcome.FAILED, is_billable=False, error=error, output=output)

    @classmethod
    def timed_out(cls, error: RunError, *, usage: Usage, output: str | None, model_used: str | None) -> "Ending":
        """We cut it: nothing is charged, whatever the provider charges us."""
        return cls(
            outcome=Outcome.TIMED_OUT, is_billable=False, usage=usage, output=output, model_used=model_used, error=error
        )

    @classmethod
    def cancelled(
        cls, *, usage: Usage | None = None, output: str | None = None, model_used: str | None = None
    ) -> "Ending":
        """The user cut it: the tokens so far are paid. Free only before anything ran.

        Otherwise cancelling just before the end would be a way to have answers for nothing.
        """
        return cls(
            outcome=Outcome.CANCELLED,
            is_billable=usage is not None,
            usage=usage or Usage(),
            output=output,
            model_used=model_used,
        )

    def event_data(self) -> dict[str, Any]:
        """What the terminal event tells clients."""
        data: dict[str, Any] = {"status": self.outcome.value, "usage": usage_data(self.usage)}
        if self.error is not None:
            data["error"] = self.error.as_dict()
        return data


def usage_data(usage: Usage) -> dict[str, int]:
    return {"input_tokens": usage.input_tokens, "output_tokens": usage.output_tokens}


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """A run to be brought to its end: under its lease, or out of the queue where `lease_token` is None.

    `last_seq` is the number of its last event, `last_text` what its readers have not been shown of the answer yet.
    """

    run_id: UUID
    user_id: str
    agent_type: str
    lease_token: int | None
    ending: Ending
    last_seq: int
    last_text: str = ""
    traceparent: str | None = None

    def events(self) -> list[RunEvent]:
        """The last events of its stream."""
        usage = self.ending.usage
        parts: list[tuple[str, dict[str, Any]]] = [("run.delta", {"text": self.last_text})] if self.last_text else []
        if usage.input_tokens or usage.output_tokens:
            price = {"cost_micro_usd": usage.cost_micro_usd, "is_estimated": usage.is_estimated}
            parts.append(("run.usage", {**usage_data(usage), **price}))
        parts.append((f"run.{self.ending.outcome}", self.ending.event_data()))
        return [RunEvent(seq=self.last_seq + n, type=kind, data=data) for n, (kind, data) in enumerate(parts, start=1)]


class StopReason(StrEnum):
    """Why a run that is under way is to stop here."""

    CANCELLED = "cancelled"
    FENCED = "fenced"
    SHUTDOWN = "shutdown"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewRun:
    """A run as it is accepted; `vibe` is already the user's sliders with the run's own applied."""

    id: UUID
    user_id: str
    agent_type: str
    task: str
    max_output_tokens: int
    model_requested: str | None = None
    vibe: Mapping[str, Any] = field(default_factory=dict[str, Any])
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    profile: Mapping[str, Any] = field(default_factory=dict[str, Any])
    template_id: UUID | None = None
    background_event_id: UUID | None = None
    traceparent: str | None = None
    priority: int = 0
    is_approval_required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasedRun:
    """A run as a worker holds it, with what its prompt needs of its user, as it was when the lease began.

    Every write names `lease_token`; with an older one nothing is written. `tier` None is a user nobody has told of;
    `template_instructions` None where `template_id` names a template that is gone. `lessons`: newest first.
    """

    id: UUID
    user_id: str
    lease_token: int
    attempt: int
    agent_type: str
    task: str
    model_requested: str | None
    vibe: Mapping[str, Any]
    context: Mapping[str, Any]
    profile: Mapping[str, Any]
    template_id: UUID | None
    max_output_tokens: int
    traceparent: str | None
    tier: str | None
    template_instructions: str | None
    lessons: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run as users see it."""

    id: UUID
    status: RunStatus
    agent_type: str
    task: str
    model_requested: str | None
    model_used: str | None
    output: str | None
    input_tokens: int
    output_tokens: int
    cost_micro_usd: int
    error: Mapping[str, Any] | None
    template_id: UUID | None
    background_event_id: UUID | None
    warnings: Sequence[Mapping[str, Any]]
    atoms: Sequence[str]
    approval: str | None
    is_bookmarked: bool
    attempt: int
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs a list shows; None leaves a property open. `words` are looked for in task and output."""

    status: str | None = None
    agent_type: str | None = None
    words: str | None = None
    is_bookmarked: bool | None = None
    approval: str | None = None
    since: datetime | None = None
    until: datetime | None = None
