"""Events the gateway owns: users, what they may use, requested runs."""

from datetime import datetime
from typing import Any, ClassVar
from uuid import UUID

from pydantic import Field

from libs.common.events.base import Event


class UserCreated(Event):
    type: ClassVar[str] = "gateway.user_created.v1"
    user_id: UUID


class UserDeleted(Event):
    """The account is gone; every service erases what it holds and answers with its own `user_erased`."""

    type: ClassVar[str] = "gateway.user_deleted.v1"
    user_id: UUID
    stripe_customer_id: str | None = None


class RunRequested(Event):
    """A run was accepted (202) under a granted hold with the same id. The task text travels here and nowhere else."""

    type: ClassVar[str] = "gateway.run_requested.v1"
    run_id: UUID
    user_id: UUID
    task: str
    agent_type: str = "suggestion"
    model: str | None = None
    vibe: dict[str, int] = Field(default_factory=dict)
    template_id: UUID | None = None
    context: dict[str, Any] = Field(default_factory=dict)
    max_output_tokens: int
    profile: dict[str, Any] = Field(default_factory=dict)
    """What prompts may use of the user's profile, as it was when the run was accepted."""


class EntitlementsChanged(Event):
    """What the user may use, after any change of the profile row by whomever. Higher `version` wins."""

    type: ClassVar[str] = "gateway.entitlements_changed.v1"
    user_id: UUID
    version: int
    tier: str
    status: str
    features: dict[str, Any] = Field(default_factory=dict)
    stripe_customer_id: str | None = None
    period_start: datetime | None = None
    period_end: datetime | None = None


class QuotaUsed(Event):
    """Something other than a run used what was held for it: an export was handed out, a template was made."""

    type: ClassVar[str] = "gateway.quota_used.v1"
    hold_id: UUID
    user_id: UUID
    amounts: dict[str, int]
