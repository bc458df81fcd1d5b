"""Events agents owns: the life of a run, background events. Never prompts or outputs: those stay in their tables."""

from datetime import datetime
from typing import ClassVar, Literal
from uuid import UUID

from libs.common.events.base import Event


class RunStarted(Event):
    type: ClassVar[str] = "agents.run_started.v1"
    run_id: UUID
    user_id: UUID
    attempt: int


class RunFinished(Event):
    """The run reached its one terminal state. Where we cut it, `is_billable` is false and it costs the user nothing."""

    type: ClassVar[str] = "agents.run_finished.v1"
    measures: ClassVar[tuple[str, ...]] = ("input_tokens", "output_tokens", "cost_micro_usd")
    run_id: UUID
    user_id: UUID
    outcome: Literal["succeeded", "failed", "cancelled", "timed_out"]
    is_billable: bool
    agent_type: str
    model_used: str
    input_tokens: int
    output_tokens: int
    cost_micro_usd: int


class RunProposed(Event):
    """A background event asks for a run; metering answers with hold_granted or hold_denied."""

    type: ClassVar[str] = "agents.run_proposed.v1"
    run_id: UUID
    user_id: UUID
    max_tokens: int


class BackgroundEventReceived(Event):
    type: ClassVar[str] = "agents.background_event_received.v1"
    user_id: UUID
    background_event_id: UUID
    source: str
    kind: str
    received_at: datetime


class UserErasedByAgents(Event):
    type: ClassVar[str] = "agents.user_erased.v1"
    user_id: UUID
