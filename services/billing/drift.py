"""Where our tables and Stripe disagree, decided without I/O: the same facts of both sides, laid side by side."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from libs.common.plans import Plans
from services.billing.domain import StripeInvoice, StripeSubscription, tier_of

Facts = Mapping[str, Any]
MISSING: Final = "missing"
_INVOICE_FACTS: Final = (
    "stripe_customer_id",
    "stripe_subscription_id",
    "number",
    "status",
    "amount_due_minor",
    "amount_paid_minor",
    "attempt_count",
    "next_attempt_at",
    "paid_at",
)
_SUBSCRIPTION_FACTS: Final = (
    "stripe_customer_id",
    "current_period_start",
    "current_period_end",
    "cancel_at",
    "cancel_at_period_end",
    "canceled_at",
    "ended_at",
    "trial_end",
    "past_due_since",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One fact that differs. `what` is the fact's name, or `missing` where one side has no such object at all."""

    object_id: str
    what: str
    ours: Any
    theirs: Any


def facts_of_subscription(subscription: StripeSubscription, plans: Plans) -> Facts:
    price, tier = tier_of(subscription.prices, plans)
    known = asdict(subscription)
    return {
        "status": subscription.status.value,
        "tier": tier,
        "price_id": price.id if price is not None else None,
        **{name: known[name] for name in _SUBSCRIPTION_FACTS},
    }


def facts_of_invoice(invoice: StripeInvoice) -> Facts:
    known = asdict(invoice)
    return {name: known[name] for name in _INVOICE_FACTS}


def differences(object_id: str, ours: Facts | None, theirs: Facts | None) -> list[Drift]:
    """Nothing where both sides agree, which they also do about an object that neither has."""
    if ours is None and theirs is None:
        return []
    if ours is None or theirs is None:
        return [
            Drift(
                object_id=object_id,
                what=MISSING,
                ours="present" if ours is not None else None,
                theirs="present" if theirs is not None else None,
            )
        ]
    return [
        Drift(object_id=object_id, what=name, ours=_plain(ours[name]), theirs=_plain(theirs[name]))
        for name in theirs
        if ours[name] != theirs[name]
    ]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
