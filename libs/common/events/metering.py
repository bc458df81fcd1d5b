"""Events metering owns: holds, settlements, thresholds."""

from datetime import datetime
from typing import ClassVar
from uuid import UUID

from libs.common.events.base import Event


class UsageSettled(Event):
    """A hold ended and this much was booked. `amounts` is by metric, in the metric's own unit."""

    type: ClassVar[str] = "metering.usage_settled.v1"
    user_id: UUID
    hold_id: UUID
    amounts: dict[str, int]
    period_start: datetime


class ThresholdReached(Event):
    """Told once per user, metric, period and threshold."""

    type: ClassVar[str] = "metering.threshold_reached.v1"
    user_id: UUID
    metric: str
    percent: int
    used: int
    limit: int
    period_end: datetime


class HoldGranted(Event):
    """Answer to `agents.run_proposed`: the run may start under this hold."""

    type: ClassVar[str] = "metering.hold_granted.v1"
    user_id: UUID
    run_id: UUID


class HoldDenied(Event):
    type: ClassVar[str] = "metering.hold_denied.v1"
    user_id: UUID
    run_id: UUID
    metric: str
    limit: int
    used: int
    held: int
    resets_at: datetime


class UserErasedByMetering(Event):
    type: ClassVar[str] = "metering.user_erased.v1"
    user_id: UUID
