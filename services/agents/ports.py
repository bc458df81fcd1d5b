"""What cannot run in this process: models, and the live mirror. An adapter alone knows the SDK behind it."""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from services.agents.prompts.domain import Prompt
from services.agents.runs.domain import RunError, RunEvent, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class TextDelta:
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """What the provider says was used so far in this call; a later report replaces an earlier one."""

    usage: Usage


ModelOutput = TextDelta | UsageReport


class ModelFailed(Exception):
    """The provider refused, broke off or sent nonsense. `error` is what the user is told: no keys, no bodies."""

    def __init__(self, error: RunError) -> None:
        super().__init__(error.code)
        self.error = error


class ModelProvider(Protocol):
    """One model at one provider.

    `stream` yields text as it comes and ends by itself; it raises ModelFailed, also when the provider's stream ends
    without saying that it is complete. Closing the generator ends the provider's work at once.
    """

    @property
    def name(self) -> str:
        """What `model_used` says."""
        ...

    def stream(self, prompt: Prompt, *, max_output_tokens: int) -> AsyncGenerator[ModelOutput, None]: ...


ChooseModel = Callable[[str | None], ModelProvider]
"""The provider for the model a run asks for by name; None asks for the default."""


class Mirror(Protocol):
    """Shows committed events of a run live. May lose them: readers find them in the table."""

    def offer(self, run_id: UUID, events: Sequence[RunEvent]) -> None:
        """Take the events over; returns at once and raises nothing."""
        ...
