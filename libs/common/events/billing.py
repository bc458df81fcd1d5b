"""Events billing owns: what Stripe says about a user's money, after it was fetched and stored."""

from datetime import datetime
from typing import ClassVar
from uuid import UUID

from libs.common.events.base import Event


class SubscriptionChanged(Event):
    """The user's effective plan as Stripe has it. Higher `version` wins; sent only when something changed."""

    type: ClassVar[str] = "billing.subscription_changed.v1"
    user_id: UUID
    version: int
    tier: str
    status: str
    stripe_customer_id: str
    current_period_start: datetime | None = None
    current_period_end: datetime | None = None
    cancel_at: datetime | None = None


class PaymentFailed(Event):
    """Collecting an invoice failed; told once per attempt. `invoice_url` is Stripe's page where it can be paid."""

    type: ClassVar[str] = "billing.payment_failed.v1"
    measures: ClassVar[tuple[str, ...]] = ("amount_minor",)
    user_id: UUID
    stripe_invoice_id: str
    amount_minor: int
    currency: str
    attempt: int
    next_attempt_at: datetime | None = None
    invoice_number: str | None = None
    invoice_url: str | None = None


class InvoicePaid(Event):
    type: ClassVar[str] = "billing.invoice_paid.v1"
    measures: ClassVar[tuple[str, ...]] = ("amount_minor",)
    user_id: UUID
    stripe_invoice_id: str
    amount_minor: int
    currency: str


class UserErasedByBilling(Event):
    type: ClassVar[str] = "billing.user_erased.v1"
    user_id: UUID
