"""Lives of subscriptions at an imagined Stripe: random changes, an event for each, and what they all come to."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

from libs.common.ids import new_id
from services.billing.domain import Price, Rules, StripeInvoice, StripeSubscription, SubscriptionStatus, tier_of
from services.billing.webhook import WebhookEvent
from tests.fakes.payments import LOOKUP_KEYS, NOW, FakePayments

_STATUSES: Final = [status for status in SubscriptionStatus if status is not SubscriptionStatus.INCOMPLETE_EXPIRED]
_PAIRS_IN_ONE_SECOND: Final = 2


@dataclass(slots=True, kw_only=True)
class Life:
    """One user's subscription and invoice, and every event that told of them, in the order they happened."""

    user_id: UUID
    subscription_id: str
    invoice_id: str
    events: list[WebhookEvent] = field(default_factory=list[WebhookEvent])


@dataclass(slots=True)
class Lives:
    """Changes `payments` as Stripe's objects change, and hands out the events."""

    payments: FakePayments
    chance: random.Random
    told: int = 0

    def begin(self, number: int) -> Life:
        life = Life(user_id=new_id(), subscription_id=f"sub_{number}", invoice_id=f"in_{number}")
        self.payments.subscriptions[life.subscription_id] = StripeSubscription(
            id=life.subscription_id,
            stripe_customer_id=f"cus_{number}",
            claimed_user_id=life.user_id,
            status=SubscriptionStatus.INCOMPLETE,
            prices=[Price(id="price_0", lookup_key=LOOKUP_KEYS[0])],
            current_period_start=NOW,
            current_period_end=NOW + timedelta(days=3650),
            cancel_at=None,
            cancel_at_period_end=False,
            canceled_at=None,
            ended_at=None,
            trial_end=None,
            past_due_since=None,
            created_at=NOW,
        )
        self.payments.invoices[life.invoice_id] = StripeInvoice(
            id=life.invoice_id,
            stripe_customer_id=f"cus_{number}",
            stripe_subscription_id=life.subscription_id,
            claimed_user_id=life.user_id,
            number=f"N-{number}",
            status="open",
            currency="usd",
            amount_due_minor=2900,
            amount_paid_minor=0,
            attempt_count=0,
            next_attempt_at=None,
            hosted_url=None,
            period_start=NOW,
            period_end=NOW + timedelta(days=30),
            paid_at=None,
            created_at=NOW,
        )
        self._tell(life, life.subscription_id, "customer.subscription.created")
        self._tell(life, life.invoice_id, "invoice.finalized")
        return life

    def step(self, life: Life) -> None:
        """Something happens at Stripe."""
        if self.chance.random() < 0.7:
            before = self.payments.subscriptions[life.subscription_id]
            key = self.chance.randrange(len(LOOKUP_KEYS))
            self.payments.subscriptions[life.subscription_id] = replace(
                before,
                status=self.chance.choice(_STATUSES),
                prices=[Price(id=f"price_{key}", lookup_key=LOOKUP_KEYS[key])],
                cancel_at_period_end=self.chance.random() < 0.3,
            )
            self._tell(life, life.subscription_id, "customer.subscription.updated")
            return
        invoice = self.payments.invoices[life.invoice_id]
        if invoice.status == "paid":
            return
        is_paid = self.chance.random() < 0.5
        self.payments.invoices[life.invoice_id] = replace(
            invoice,
            status="paid" if is_paid else "open",
            attempt_count=invoice.attempt_count + 1,
            amount_paid_minor=2900 if is_paid else 0,
            paid_at=NOW if is_paid else None,
        )
        self._tell(life, life.invoice_id, "invoice.paid" if is_paid else "invoice.payment_failed")

    def _tell(self, life: Life, object_id: str, event_type: str) -> None:
        self.told += 1
        customer_id = self.payments.subscriptions[life.subscription_id].stripe_customer_id
        life.events.append(
            WebhookEvent(
                id=f"evt_{self.told}",
                type=event_type,
                object_id=object_id,
                stripe_customer_id=customer_id,
                is_live=False,
                api_version=None,
                # Pairs share a second, as Stripe's do: `created` says nothing about their order.
                created_at=datetime.fromtimestamp(1_790_000_000 + self.told // _PAIRS_IN_ONE_SECOND, tz=UTC),
                payload={"id": object_id},
            )
        )


def expected_rows(lives: Sequence[Life], payments: FakePayments, rules: Rules) -> dict[str, list[dict[str, Any]]]:
    """What the tables must hold: Stripe's final objects and nothing of the way there."""
    subscriptions = [(life, payments.subscriptions[life.subscription_id]) for life in lives]
    invoices = [(life, payments.invoices[life.invoice_id]) for life in lives]
    return {
        "subscriptions": sorted(
            (
                {
                    "id": one.id,
                    "user_id": life.user_id,
                    "stripe_customer_id": one.stripe_customer_id,
                    "status": one.status.value,
                    "tier": tier_of(one.prices, rules.plans)[1],
                    "price_id": one.prices[0].id,
                    "cancel_at_period_end": one.cancel_at_period_end,
                    "current_period_end": one.current_period_end,
                }
                for life, one in subscriptions
            ),
            key=lambda row: str(row["id"]),
        ),
        "invoices": sorted(
            (
                {
                    "id": one.id,
                    "user_id": life.user_id,
                    "status": one.status,
                    "amount_paid_minor": one.amount_paid_minor,
                    "attempt_count": one.attempt_count,
                    "paid_at": one.paid_at,
                }
                for life, one in invoices
            ),
            key=lambda row: str(row["id"]),
        ),
    }
