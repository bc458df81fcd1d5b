"""What cannot run in this process: models, metering's holds, the live mirror. Only adapters know what is behind."""

from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import UUID

from services.agents.prompts.domain import Prompt
from services.agents.runs.domain import Run, RunError, RunEvent, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """What the provider says was used so far in this call; a later report replaces an earlier one."""

    usage: Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChosen:
    """A call begins at this model: the first, a repetition, or the next of the fallbacks."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """The model asks for a tool; `arguments` are what it wrote, or empty where that was no JSON object."""

    id: str
    name: str
    arguments: Mapping[str, Any]


ModelOutput = TextDelta | UsageReport | ModelChosen | ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """A tool as the model is told of it; `parameters` is a JSON schema."""

    name: str
    description: str
    parameters: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """What has been said after the prompt: the model's words and calls, then our results by call id, or a request."""

    text: str = ""
    calls: Sequence[ToolCall] = ()
    results: Mapping[str, str] = field(default_factory=dict[str, str])
    request: str | None = None


class ModelFailed(Exception):
    """The provider refused, broke off or sent nonsense. `error` is what the user is told: no keys, no bodies.

    `is_retryable`: the same call may do better later, after `retry_after_s` if given. `is_illness`: it speaks of the
    provider's state rather than of this request, and counts for its breaker. `reported` is what the provider counted.
    """

    def __init__(
        self,
        error: RunError,
        *,
        is_retryable: bool = False,
        is_illness: bool = False,
        retry_after_s: float | None = None,
        reported: Usage | None = None,
    ) -> None:
        super().__init__(error.code)
        self.error = error
        self.is_retryable = is_retryable
        self.is_illness = is_illness
        self.retry_after_s = retry_after_s
        self.reported = reported


class ModelProvider(Protocol):
    """One model at one provider.

    `stream` yields text as it comes and ends by itself; it raises ModelFailed, also when the provider's stream ends
    without saying that it is complete. Closing the generator ends the provider's work at once.
    """

    @property
    def name(self) -> str:
        """What `model_used` says."""
        ...

    def stream(
        self, prompt: Prompt, *, max_output_tokens: int, tools: Sequence[ToolSpec] = (), rounds: Sequence[Round] = ()
    ) -> AsyncGenerator[ModelOutput, None]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelWish:
    """What decides which model answers: the name a run asks for, if any, and its user's tier."""

    requested: str | None
    tier: str


ChooseModel = Callable[[ModelWish], ModelProvider]
"""The model for a run. Raises ModelNotAvailable."""


class Holds(Protocol):
    """Metering's hold of a run: what it may use in tokens, input and output together."""

    async def extend(self, run_id: UUID, user_id: str, *, tokens: int) -> bool:
        """Let the hold hold so many tokens in all; False if it does not, for whatever reason. Asking again is safe."""
        ...


class NoExtension:
    """Where metering cannot be asked: a run stays within the hold it began with."""

    async def extend(self, run_id: UUID, user_id: str, *, tokens: int) -> bool:  # noqa: ARG002
        return False


class Mirror(Protocol):
    """Shows committed events of a run live. May lose them: readers find them in the table."""

    def offer(self, run_id: UUID, events: Sequence[RunEvent], *, ended: Run | None = None) -> None:
        """Take the events over; returns at once and raises nothing. `ended`: the run as the last of them leaves it."""
        ...
