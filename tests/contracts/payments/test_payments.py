"""What billing relies on, of whoever implements `Payments`."""

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from libs.common.clock import system_clock
from libs.common.ids import new_id
from services.billing.domain import (
    CustomerGone,
    PaymentsUnavailable,
    StripeCheckout,
    SubscriptionStatus,
    UsageErrors,
    UsageReport,
)
from tests.builders import METER

if TYPE_CHECKING:
    from tests.contracts.payments.conftest import Provider


async def a_customer(provider: "Provider", user_id: UUID) -> str:
    return await provider.payments.create_customer(
        user_id=user_id, email="someone@example.com", idempotency_key=f"customer-{user_id}"
    )


async def a_checkout(
    provider: "Provider", user_id: UUID, customer_id: str, *, lookup_key: str = "pro_monthly"
) -> StripeCheckout:
    return await provider.payments.create_checkout(
        user_id=user_id,
        customer_id=customer_id,
        lookup_key=lookup_key,
        success_url="https://app.example.com/done",
        cancel_url="https://app.example.com/",
        idempotency_key=f"checkout-{user_id}-{lookup_key}",
    )


async def test_the_same_key_makes_the_same_customer(provider: "Provider") -> None:
    user_id = new_id()
    first, again = await a_customer(provider, user_id), await a_customer(provider, user_id)
    assert first == again
    assert await a_customer(provider, new_id()) != first


async def test_a_customer_names_its_user_and_is_found_by_it(provider: "Provider") -> None:
    user_id = new_id()
    customer_id = await a_customer(provider, user_id)
    customer = await provider.payments.fetch_customer(customer_id)
    assert customer is not None
    assert customer.claimed_user_id == user_id
    assert await provider.payments.find_customer(user_id) == customer_id
    assert await provider.payments.find_customer(new_id()) is None


async def test_a_deleted_customer_is_gone_and_may_be_deleted_again(provider: "Provider") -> None:
    customer_id = await a_customer(provider, new_id())
    await provider.payments.delete_customer(customer_id)
    await provider.payments.delete_customer(customer_id)
    assert await provider.payments.fetch_customer(customer_id) is None
    assert list(await provider.payments.find_subscription_ids(customer_id)) == []


async def test_what_does_not_exist_is_none(provider: "Provider") -> None:
    assert await provider.payments.fetch_customer("cus_unknown") is None
    assert await provider.payments.fetch_subscription("sub_unknown") is None
    assert await provider.payments.fetch_checkout("cs_test_unknown") is None
    assert await provider.payments.end_checkout("cs_test_unknown") is None
    assert await provider.payments.fetch_invoice("in_unknown") is None
    await provider.payments.cancel_subscription("sub_unknown")


async def test_the_same_key_opens_the_same_checkout(provider: "Provider") -> None:
    user_id = new_id()
    customer_id = await a_customer(provider, user_id)
    first, again = await a_checkout(provider, user_id, customer_id), await a_checkout(provider, user_id, customer_id)
    assert first == again
    assert (first.status, first.claimed_user_id, first.stripe_customer_id) == ("open", user_id, customer_id)
    assert first.url is not None
    assert await provider.payments.fetch_checkout(first.id) == first


async def test_a_checkout_for_a_customer_that_is_gone_says_so(provider: "Provider") -> None:
    user_id = new_id()
    customer_id = await a_customer(provider, user_id)
    await provider.payments.delete_customer(customer_id)
    with pytest.raises(CustomerGone):
        await a_checkout(provider, user_id, customer_id)
    with pytest.raises(CustomerGone):
        await provider.payments.create_portal(customer_id=customer_id, return_url="https://app.example.com/")


async def test_a_missing_price_may_be_there_later(provider: "Provider") -> None:
    user_id = new_id()
    customer_id = await a_customer(provider, user_id)
    with pytest.raises(PaymentsUnavailable):
        await a_checkout(provider, user_id, customer_id, lookup_key="of_nothing")


async def test_a_paid_checkout_is_a_subscription_and_an_invoice(provider: "Provider") -> None:
    user_id = new_id()
    customer_id = await a_customer(provider, user_id)
    session = await a_checkout(provider, user_id, customer_id)
    subscription_id, invoice_id = await provider.complete(session.id)
    completed = await provider.payments.fetch_checkout(session.id)
    assert completed is not None
    assert (completed.status, completed.url, completed.stripe_subscription_id) == ("complete", None, subscription_id)
    assert list(await provider.payments.find_subscription_ids(customer_id)) == [subscription_id]
    subscription = await provider.payments.fetch_subscription(subscription_id)
    assert subscription is not None
    assert (subscription.status, subscription.claimed_user_id) == (SubscriptionStatus.ACTIVE, user_id)
    assert [price.lookup_key for price in subscription.prices] == ["pro_monthly"]
    assert subscription.current_period_start is not None
    assert subscription.current_period_end is not None
    assert subscription.current_period_start < subscription.current_period_end
    invoice = await provider.payments.fetch_invoice(invoice_id)
    assert invoice is not None
    assert (invoice.status, invoice.amount_paid_minor, invoice.currency) == ("paid", 2900, "usd")
    assert (invoice.stripe_customer_id, invoice.stripe_subscription_id) == (customer_id, subscription_id)
    assert invoice.paid_at is not None


async def test_ending_a_checkout_ends_an_open_one_and_leaves_a_paid_one(provider: "Provider") -> None:
    user_id = new_id()
    customer_id = await a_customer(provider, user_id)
    left = await a_checkout(provider, user_id, customer_id, lookup_key="pro_plus_monthly")
    for _ in range(2):
        ended = await provider.payments.end_checkout(left.id)
        assert ended is not None
        assert (ended.status, ended.url) == ("expired", None)
    paid = await a_checkout(provider, user_id, customer_id)
    await provider.complete(paid.id)
    kept = await provider.payments.end_checkout(paid.id)
    assert kept is not None
    assert kept.status == "complete"


async def test_cancelling_ends_a_subscription_once(provider: "Provider") -> None:
    user_id = new_id()
    customer_id = await a_customer(provider, user_id)
    subscription_id, _ = await provider.complete((await a_checkout(provider, user_id, customer_id)).id)
    await provider.payments.cancel_subscription(subscription_id)
    await provider.payments.cancel_subscription(subscription_id)
    subscription = await provider.payments.fetch_subscription(subscription_id)
    assert subscription is not None
    assert subscription.status is SubscriptionStatus.CANCELED
    assert subscription.ended_at is not None


async def test_deleting_a_customer_cancels_what_it_pays_for(provider: "Provider") -> None:
    user_id = new_id()
    customer_id = await a_customer(provider, user_id)
    subscription_id, _ = await provider.complete((await a_checkout(provider, user_id, customer_id)).id)
    await provider.payments.delete_customer(customer_id)
    subscription = await provider.payments.fetch_subscription(subscription_id)
    assert subscription is not None
    assert subscription.status is SubscriptionStatus.CANCELED


async def test_the_portal_opens_for_a_customer(provider: "Provider") -> None:
    customer_id = await a_customer(provider, new_id())
    url = await provider.payments.create_portal(customer_id=customer_id, return_url="https://app.example.com/")
    assert url.startswith("http")


def a_report(customer_id: str, **changes: Any) -> UsageReport:
    hold_id = new_id()
    facts: dict[str, Any] = {
        "hold_id": hold_id,
        "metric": "tokens",
        "stripe_customer_id": customer_id,
        "meter": METER,
        "identifier": str(hold_id),
        "value": 40,
        "used_at": system_clock() - timedelta(hours=2),
        "is_stale": False,
        "token": new_id(),
    }
    return UsageReport(**{**facts, **changes})


async def total(provider: "Provider", report: UsageReport, **changes: Any) -> int | None:
    start = report.used_at.replace(second=0, microsecond=0)
    asked: dict[str, Any] = {"meter": report.meter, "customer_id": report.stripe_customer_id}
    return await provider.payments.usage_total(**{**asked, **changes}, start=start, end=start + timedelta(minutes=1))


async def test_usage_is_counted_once_by_its_identifier(provider: "Provider") -> None:
    report = a_report(await a_customer(provider, new_id()))
    await provider.payments.report_usage(report)
    await provider.payments.report_usage(report)
    assert await total(provider, report) == 40
    await provider.payments.report_usage(replace(report, identifier=f"{report.identifier}-again", value=2))
    assert await total(provider, report) == 42


async def test_no_meter_or_customer_has_no_total(provider: "Provider") -> None:
    report = a_report(await a_customer(provider, new_id()))
    assert await total(provider, report) == 0
    assert await total(provider, report, meter="unheard_of") is None
    assert await total(provider, report, customer_id="cus_unknown") is None


async def test_usage_that_cannot_be_counted_is_complained_of_afterwards(provider: "Provider") -> None:
    report = a_report(await a_customer(provider, new_id()), meter="unheard_of")
    await provider.payments.report_usage(report)
    errors = await provider.payments.fetch_usage_errors(await provider.usage_complaint())
    assert errors == UsageErrors(codes={report.identifier: "no_meter"}, count=1)
