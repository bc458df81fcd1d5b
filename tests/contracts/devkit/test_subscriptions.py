"""The life of a subscription on a test clock."""

from typing import Any

import pytest
import stripe
from emulation import (
    Emulator,
    a_clock,
    a_customer,
    a_subscription,
    advance,
    eventually,
    item_of,
    latest_invoice,
    the_price,
)

START = 1_800_000_000  # 15 January 2027


def types_about(client: stripe.StripeClient, object_id: str) -> list[str]:
    """Types of the events about an object, oldest first."""
    found = [event for event in client.v1.events.list({"limit": 100}).data if event.data.object["id"] == object_id]
    return [event.type for event in reversed(found)]


def test_a_paid_subscription_is_active_and_renews(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    subscription = a_subscription(client, a_customer(client, clock=clock).id)
    item = item_of(subscription)
    assert (subscription.status, item.current_period_start) == ("active", START)
    assert item.current_period_end == START + 31 * 86_400
    first = latest_invoice(client, subscription.id)
    assert (first.status, first.billing_reason, first.amount_paid) == ("paid", "subscription_create", 2900)

    advance(client, clock, days=31.01)
    renewed = client.v1.subscriptions.retrieve(subscription.id)
    assert item_of(renewed).current_period_start == item.current_period_end
    draft = latest_invoice(client, subscription.id)
    assert (draft.status, draft.billing_reason) == ("draft", "subscription_cycle")

    advance(client, clock, days=0.1)
    paid = client.v1.invoices.retrieve(draft.id)
    assert paid.status == "paid"
    assert paid.status_transitions.paid_at == item.current_period_end + 3600
    (line,) = paid.lines.data
    assert line.parent is not None
    assert line.parent.subscription_item_details is not None
    assert line.parent.subscription_item_details.subscription_item == item.id
    assert (line.period.start, line.amount) == (item.current_period_end, 2900)


def test_a_month_that_is_too_short_does_not_move_the_anchor(client: stripe.StripeClient) -> None:
    clock = a_clock(client, 1_801_396_800)  # 31 January 2027
    subscription = a_subscription(client, a_customer(client, clock=clock).id)
    ends = [item_of(subscription).current_period_end]
    for _ in range(2):
        advance(client, clock, days=31)
        ends.append(item_of(client.v1.subscriptions.retrieve(subscription.id)).current_period_end)
    assert [(end - 1_801_396_800) // 86_400 for end in ends] == [28, 59, 89]  # 28 February, 31 March, 30 April


def test_a_failing_renewal_is_past_due_retried_and_recovers(client: stripe.StripeClient, emulator: Emulator) -> None:
    clock = a_clock(client)
    customer = a_customer(client, clock=clock)
    subscription = a_subscription(client, customer.id)
    emulator.control("POST", "/outcomes", {"customer": customer.id, "outcomes": ["card_declined", "card_declined"]})
    advance(client, clock, days=31.1)
    invoice = latest_invoice(client, subscription.id)
    assert client.v1.subscriptions.retrieve(subscription.id).status == "past_due"
    assert (invoice.status, invoice.attempt_count) == ("open", 1)
    assert invoice.next_payment_attempt is not None
    assert client.v1.customers.retrieve(customer.id).delinquent
    assert "invoice.payment_failed" in types_about(client, invoice.id)

    advance(client, clock, days=3.1)
    assert client.v1.invoices.retrieve(invoice.id).attempt_count == 2
    advance(client, clock, days=5.1)
    assert client.v1.invoices.retrieve(invoice.id).status == "paid"
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"
    assert not client.v1.customers.retrieve(customer.id).delinquent


def test_a_card_that_never_pays_ends_the_subscription(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    customer = a_customer(client, clock=clock)
    subscription = a_subscription(client, customer.id)
    method = client.v1.payment_methods.attach("pm_card_chargeCustomerFail", {"customer": customer.id})
    client.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": method.id}})
    advance(client, clock, days=31 + 20)
    ended = client.v1.subscriptions.retrieve(subscription.id)
    assert ended.status == "canceled"
    assert ended.cancellation_details is not None
    assert ended.cancellation_details.reason == "payment_failed"
    assert latest_invoice(client, subscription.id).attempt_count == 4


def test_paying_the_open_invoice_by_hand_recovers(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    customer = a_customer(client, clock=clock)
    subscription = a_subscription(client, customer.id)
    bad = client.v1.payment_methods.attach("pm_card_chargeCustomerFail", {"customer": customer.id})
    client.v1.customers.update(customer.id, {"invoice_settings": {"default_payment_method": bad.id}})
    advance(client, clock, days=31.1)
    invoice = latest_invoice(client, subscription.id)
    with pytest.raises(stripe.CardError):
        client.v1.invoices.pay(invoice.id)
    assert client.v1.invoices.retrieve(invoice.id).attempt_count == 2, "a declined attempt leaves its trace"
    good = client.v1.payment_methods.attach("pm_card_visa", {"customer": customer.id})
    assert client.v1.invoices.pay(invoice.id, {"payment_method": good.id}).status == "paid"
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"


def test_first_payments_fail_in_three_ways(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    customer = a_customer(client, card="pm_card_chargeCustomerFail", clock=clock)
    with pytest.raises(stripe.CardError):
        a_subscription(client, customer.id, payment_behavior="error_if_incomplete")
    assert not client.v1.subscriptions.list({"customer": customer.id, "status": "all"}).data

    incomplete = a_subscription(client, customer.id)
    assert incomplete.status == "incomplete"
    waiting = a_subscription(
        client, customer.id, payment_behavior="default_incomplete", expand=["latest_invoice.confirmation_secret"]
    )
    assert isinstance(waiting.latest_invoice, stripe.Invoice)
    assert waiting.latest_invoice.confirmation_secret is not None
    assert "_secret_" in waiting.latest_invoice.confirmation_secret.client_secret
    assert (waiting.status, waiting.latest_invoice.attempt_count) == ("incomplete", 0)

    good = client.v1.payment_methods.attach("pm_card_visa", {"customer": customer.id})
    client.v1.invoices.pay(waiting.latest_invoice.id, {"payment_method": good.id})
    assert client.v1.subscriptions.retrieve(waiting.id).status == "active"
    advance(client, clock, days=1)
    assert client.v1.subscriptions.retrieve(incomplete.id).status == "incomplete_expired"
    assert latest_invoice(client, incomplete.id).status == "void"


def test_no_card_is_an_error(client: stripe.StripeClient) -> None:
    with pytest.raises(stripe.InvalidRequestError, match="no attached payment source") as refused:
        a_subscription(client, a_customer(client, card=None).id)
    assert refused.value.code == "resource_missing"


def test_a_trial_warns_and_becomes_paid(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    subscription = a_subscription(client, a_customer(client, clock=clock).id, trial_period_days=14)
    assert (subscription.status, subscription.trial_end) == ("trialing", START + 14 * 86_400)
    assert latest_invoice(client, subscription.id).total == 0
    advance(client, clock, days=11.5)
    assert "customer.subscription.trial_will_end" in types_about(client, subscription.id)
    advance(client, clock, days=3)
    paid = client.v1.subscriptions.retrieve(subscription.id)
    assert (paid.status, item_of(paid).current_period_start) == ("active", START + 14 * 86_400)
    assert latest_invoice(client, subscription.id).amount_paid == 2900


@pytest.mark.parametrize(("behaviour", "status"), [("cancel", "canceled"), ("pause", "paused")])
def test_a_trial_without_a_card_ends_as_asked(client: stripe.StripeClient, behaviour: str, status: str) -> None:
    clock = a_clock(client)
    customer = a_customer(client, card=None, clock=clock)
    settings = {"end_behavior": {"missing_payment_method": behaviour}}
    subscription = a_subscription(client, customer.id, trial_period_days=7, trial_settings=settings)
    advance(client, clock, days=7.1)
    ended = client.v1.subscriptions.retrieve(subscription.id)
    assert ended.status == status
    if status == "paused":
        assert ended.status_details is not None
        assert ended.status_details.paused.subscription.type == "trial_end_without_payment_method"
        client.v1.payment_methods.attach("pm_card_visa", {"customer": customer.id})
        method = client.v1.payment_methods.list({"customer": customer.id}).data[0]
        client.v1.subscriptions.update(subscription.id, {"default_payment_method": method.id})
        assert client.v1.subscriptions.resume(subscription.id).status == "active"
        assert "customer.subscription.resumed" in types_about(client, subscription.id)


def test_a_price_change_is_prorated(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    subscription = a_subscription(client, a_customer(client, clock=clock).id)
    advance(client, clock, days=15.5)
    other = the_price(client, "pro_plus_monthly")
    changed = client.v1.subscriptions.update(
        subscription.id, {"items": [{"id": item_of(subscription).id, "price": other.id, "quantity": 2}]}
    )
    assert (item_of(changed).price.id, item_of(changed).quantity) == (other.id, 2)
    assert item_of(changed).current_period_end == item_of(subscription).current_period_end
    advance(client, clock, days=16)
    invoice = latest_invoice(client, subscription.id)
    assert [line.amount for line in invoice.lines.data] == [-1450, 9900, 19800]
    assert invoice.amount_paid == 28250


def test_a_change_can_be_billed_at_once(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    subscription = a_subscription(client, a_customer(client, clock=clock).id)
    advance(client, clock, days=15.5)
    client.v1.subscriptions.update(
        subscription.id,
        {
            "items": [{"id": item_of(subscription).id, "price": the_price(client, "pro_plus_monthly").id}],
            "proration_behavior": "always_invoice",
        },
    )
    invoice = latest_invoice(client, subscription.id)
    assert (invoice.billing_reason, invoice.amount_paid) == ("subscription_update", 4950 - 1450)


def test_cancelling_at_the_end_takes_effect_at_the_end(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    subscription = a_subscription(client, a_customer(client, clock=clock).id)
    ending = client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    assert (ending.status, ending.cancel_at) == ("active", item_of(ending).current_period_end)
    assert client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": False}).cancel_at is None
    client.v1.subscriptions.update(subscription.id, {"cancel_at": "min_period_end"})
    advance(client, clock, days=31.1)
    ended = client.v1.subscriptions.retrieve(subscription.id)
    assert (ended.status, ended.ended_at) == ("canceled", ending.cancel_at)
    assert types_about(client, subscription.id)[-1] == "customer.subscription.deleted"
    assert client.v1.invoices.list({"subscription": subscription.id}).data[0].billing_reason == "subscription_create"


def test_cancelling_now_is_final(client: stripe.StripeClient) -> None:
    subscription = a_subscription(client, a_customer(client).id)
    gone = client.v1.subscriptions.cancel(subscription.id, {"cancellation_details": {"comment": "too dear"}})
    assert gone.status == "canceled"
    assert gone.cancellation_details is not None
    assert gone.cancellation_details.comment == "too dear"
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.subscriptions.cancel(subscription.id)
    assert refused.value.code == "resource_missing"
    with pytest.raises(stripe.InvalidRequestError, match="canceled subscription"):
        client.v1.subscriptions.update(subscription.id, {"cancel_at_period_end": True})


def test_paused_collection_keeps_the_status_and_voids_invoices(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    subscription = a_subscription(client, a_customer(client, clock=clock).id)
    resumes_at = START + 40 * 86_400
    held = client.v1.subscriptions.update(
        subscription.id, {"pause_collection": {"behavior": "void", "resumes_at": resumes_at}}
    )
    assert held.status == "active"
    advance(client, clock, days=31.1)
    assert latest_invoice(client, subscription.id).status == "void"
    advance(client, clock, days=10)
    assert client.v1.subscriptions.retrieve(subscription.id).pause_collection is None


def test_pause_and_resume(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    subscription = a_subscription(client, a_customer(client, clock=clock).id)
    paused = client.v1.subscriptions.pause(subscription.id)
    assert paused.status == "paused"
    assert paused.status_details is not None
    assert paused.status_details.paused.subscription.type == "pause_requested"
    advance(client, clock, days=40)
    assert len(client.v1.invoices.list({"subscription": subscription.id}).data) == 1, "a pause bills nothing"
    resumed = client.v1.subscriptions.resume(subscription.id)
    assert (resumed.status, item_of(resumed).current_period_start) == ("active", START + 40 * 86_400)


def test_lists_filter_by_status_customer_and_price(client: stripe.StripeClient) -> None:
    customer = a_customer(client)
    kept, gone = (a_subscription(client, customer.id).id for _ in range(2))
    client.v1.subscriptions.cancel(gone)

    def listed(**params: Any) -> list[str]:
        fields: Any = {"customer": customer.id, **params}
        return [one.id for one in client.v1.subscriptions.list(fields).data]

    assert listed() == [kept]
    assert listed(status="all") == [gone, kept]
    assert listed(status="canceled") == [gone]
    assert listed(price=the_price(client, "pro_plus_monthly").id) == []


def test_a_deleted_test_clock_takes_its_customers_along(client: stripe.StripeClient) -> None:
    clock = a_clock(client)
    customer = a_customer(client, clock=clock)
    subscription = a_subscription(client, customer.id)
    with pytest.raises(stripe.InvalidRequestError, match="later than"):
        client.v1.test_helpers.test_clocks.advance(clock, {"frozen_time": START})
    client.v1.test_helpers.test_clocks.delete(clock)
    assert client.v1.customers.retrieve(customer.id).deleted
    assert client.v1.subscriptions.retrieve(subscription.id).status == "canceled"


def test_the_global_clock_moves_everything_without_a_test_clock(own_emulator: Emulator) -> None:
    client = own_emulator.run().client()
    subscription = a_subscription(client, a_customer(client).id)
    before = own_emulator.control("GET", "/clock")["now"]
    after = own_emulator.control("POST", "/clock/advance", {"interval": "month"})["now"]
    assert after - before >= 28 * 86_400
    own_emulator.control("POST", "/clock/advance", {"seconds": 3700})
    assert eventually(lambda: latest_invoice(client, subscription.id).status == "paid")
    assert latest_invoice(client, subscription.id).billing_reason == "subscription_cycle"
    assert client.v1.customers.create({}).created >= after
