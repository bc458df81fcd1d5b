"""Stripe's objects read into our own: only fields of the pinned API version, never one that Stripe has removed."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

from services.billing.domain import (
    Price,
    StripeCheckout,
    StripeCustomer,
    StripeInvoice,
    StripePrice,
    StripeSubscription,
    SubscriptionStatus,
    Unreadable,
    UsageErrors,
)

Facts = Mapping[str, Any]


def read_customer(facts: Facts) -> StripeCustomer:
    return StripeCustomer(id=facts["id"], claimed_user_id=_claimed(facts))


def read_subscription(facts: Facts, *, past_due_since: datetime | None) -> StripeSubscription:
    """Raises Unreadable for a status that Stripe added since: a guess would give or take a plan."""
    try:
        status = SubscriptionStatus(facts["status"])
    except ValueError as error:
        raise Unreadable("Stripe reports a subscription status that this version does not know.") from error
    items = _items(facts, "items")
    starts = [item["current_period_start"] for item in items if item.get("current_period_start") is not None]
    ends = [item["current_period_end"] for item in items if item.get("current_period_end") is not None]
    return StripeSubscription(
        id=facts["id"],
        stripe_customer_id=_id(facts["customer"]) or "",
        claimed_user_id=_claimed(facts),
        status=status,
        prices=[_price(_part(item, "price")) for item in items],
        current_period_start=instant(max(starts, default=None)),
        current_period_end=instant(min(ends, default=None)),
        cancel_at=instant(facts.get("cancel_at")),
        cancel_at_period_end=bool(facts.get("cancel_at_period_end")),
        canceled_at=instant(facts.get("canceled_at")),
        ended_at=instant(facts.get("ended_at")),
        trial_end=instant(facts.get("trial_end")),
        past_due_since=past_due_since,
        created_at=_created(facts),
    )


def _price(facts: Facts) -> Price:
    return Price(id=facts["id"], lookup_key=facts.get("lookup_key"), tier_hint=_part(facts, "metadata").get("tier"))


def read_price(facts: Facts) -> StripePrice:
    return StripePrice(
        lookup_key=facts.get("lookup_key") or "",
        amount_minor=facts.get("unit_amount"),
        currency=facts["currency"],
        interval=_part(facts, "recurring").get("interval"),
    )


def read_checkout(facts: Facts) -> StripeCheckout:
    # client_reference_id may be set by anyone in the address of a payment link; in a session of our making it is ours.
    claimed = _claimed(facts) or (_uuid(facts.get("client_reference_id")) if not facts.get("payment_link") else None)
    return StripeCheckout(
        id=facts["id"],
        status=facts.get("status") or "open",
        url=facts.get("url"),
        stripe_customer_id=_id(facts.get("customer")),
        stripe_subscription_id=_id(facts.get("subscription")),
        claimed_user_id=claimed,
    )


def read_invoice(facts: Facts) -> StripeInvoice:
    details = _part(_part(facts, "parent"), "subscription_details")
    # The period that was paid for is the lines'; the invoice's own is when its items were gathered.
    periods = [_part(line, "period") for line in _items(facts, "lines")]
    return StripeInvoice(
        id=facts["id"],
        stripe_customer_id=_id(facts.get("customer")),
        stripe_subscription_id=_id(details.get("subscription")),
        claimed_user_id=_claimed(details),
        number=facts.get("number"),
        status=facts.get("status") or "draft",
        currency=facts["currency"],
        amount_due_minor=facts["amount_due"],
        amount_paid_minor=facts["amount_paid"],
        attempt_count=facts["attempt_count"],
        next_attempt_at=instant(facts.get("next_payment_attempt")),
        hosted_url=facts.get("hosted_invoice_url"),
        period_start=instant(min((period["start"] for period in periods if period), default=None)),
        period_end=instant(max((period["end"] for period in periods if period), default=None)),
        paid_at=instant(_part(facts, "status_transitions").get("paid_at")),
        created_at=_created(facts),
    )


def read_usage_errors(event: Facts) -> UsageErrors:
    reason = _part(_part(event, "data"), "reason")
    kinds: Sequence[Facts] = reason.get("error_types") or []
    return UsageErrors(
        codes={
            identifier: kind["code"]
            for kind in kinds
            for sample in cast("Sequence[Facts]", kind.get("sample_errors") or [])
            if (identifier := _part(sample, "request").get("identifier")) is not None
        },
        count=reason.get("error_count") or 0,
    )


def due_since(invoice: Facts) -> int:
    """When an open invoice began to be owed, in seconds since 1970."""
    return _part(invoice, "status_transitions").get("finalized_at") or invoice["created"]


def instant(seconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(seconds, tz=UTC) if seconds is not None else None


def _created(facts: Facts) -> datetime:
    return datetime.fromtimestamp(facts["created"], tz=UTC)


def _part(facts: Facts, name: str) -> Facts:
    value = facts.get(name)
    return cast("Facts", value) if isinstance(value, Mapping) else {}


def _items(facts: Facts, name: str) -> Sequence[Facts]:
    return _part(facts, name).get("data") or []


def _id(reference: Any) -> str | None:
    """The id of what may be an id, an expanded object, or nothing."""
    return cast("Facts", reference)["id"] if isinstance(reference, Mapping) else reference


def _claimed(facts: Facts) -> UUID | None:
    return _uuid(_part(facts, "metadata").get("user_id"))


def _uuid(text: Any) -> UUID | None:
    try:
        return UUID(text) if isinstance(text, str) else None
    except ValueError:
        return None
