"""Invoices by hand, payments of invoices, refunds and disputes."""

import httpx
import pytest
import stripe
from emulation import Emulator, a_customer, a_subscription, eventually, latest_invoice


def test_an_invoice_by_hand_is_drafted_finalized_and_paid(client: stripe.StripeClient) -> None:
    customer = a_customer(client)
    client.v1.invoice_items.create({"customer": customer.id, "amount": 700, "currency": "usd", "description": "Advice"})
    draft = client.v1.invoices.create({"customer": customer.id, "pending_invoice_items_behavior": "include"})
    assert (draft.status, draft.total, draft.number) == ("draft", 700, None)
    opened = client.v1.invoices.finalize_invoice(draft.id)
    assert (opened.status, opened.amount_remaining) == ("open", 700)
    assert opened.number is not None
    paid = client.v1.invoices.pay(draft.id)
    assert (paid.status, paid.amount_paid, paid.amount_remaining) == ("paid", 700, 0)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.invoices.pay(draft.id)
    assert refused.value.code == "invoice_already_paid"


def test_open_invoices_are_voided_or_written_off(client: stripe.StripeClient) -> None:
    customer = a_customer(client, card="pm_card_chargeCustomerFail")
    first, second = (latest_invoice(client, a_subscription(client, customer.id).id).id for _ in range(2))
    assert client.v1.invoices.void_invoice(first).status == "void"
    assert client.v1.invoices.mark_uncollectible(second).status == "uncollectible"
    with pytest.raises(stripe.InvalidRequestError):
        client.v1.invoices.void_invoice(first)
    assert {one.id for one in client.v1.invoices.list({"customer": customer.id, "status": "void"}).data} == {first}


def test_the_invoice_page_shows_and_takes_the_payment(client: stripe.StripeClient) -> None:
    customer = a_customer(client, card="pm_card_chargeCustomerFail")
    subscription = a_subscription(client, customer.id)
    invoice = latest_invoice(client, subscription.id)
    assert invoice.hosted_invoice_url is not None
    assert invoice.invoice_pdf is not None
    assert "Pay with a test card" in httpx.get(invoice.hosted_invoice_url).text
    assert httpx.get(invoice.invoice_pdf).content.startswith(b"%PDF-")
    assert httpx.post(f"{invoice.hosted_invoice_url}/pay").status_code == 200
    assert client.v1.subscriptions.retrieve(subscription.id).status == "active"


def test_invoices_can_be_sent_instead_of_charged(client: stripe.StripeClient) -> None:
    subscription = a_subscription(
        client, a_customer(client, card=None).id, collection_method="send_invoice", days_until_due=14
    )
    invoice = latest_invoice(client, subscription.id)
    assert (subscription.status, invoice.status) == ("active", "open")
    assert invoice.status_transitions.finalized_at is not None
    assert invoice.due_date == invoice.status_transitions.finalized_at + 14 * 86_400
    paid = client.v1.invoices.pay(invoice.id, {"paid_out_of_band": True})
    assert (paid.status, paid.attempt_count) == ("paid", 0)


def test_a_refund_leads_back_to_its_invoice(client: stripe.StripeClient) -> None:
    customer = a_customer(client)
    invoice = latest_invoice(client, a_subscription(client, customer.id).id)
    (payment,) = client.v1.invoice_payments.list({"invoice": invoice.id}).data
    intent = payment.payment.payment_intent
    assert isinstance(intent, str)
    assert (payment.status, payment.amount_paid) == ("paid", 2900)
    client.v1.refunds.create({"payment_intent": intent, "amount": 900, "reason": "requested_by_customer"})
    charge = client.v1.payment_intents.retrieve(intent, {"expand": ["latest_charge.refunds"]}).latest_charge
    assert isinstance(charge, stripe.Charge)
    assert (charge.amount_refunded, charge.refunded) == (900, False)
    assert charge.refunds is not None
    assert charge.refunds.data[0].amount == 900
    client.v1.refunds.create({"charge": charge.id})
    assert client.v1.charges.retrieve(charge.id).refunded
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.refunds.create({"charge": charge.id})
    assert refused.value.code == "charge_already_refunded"
    told = client.v1.events.list({"type": "charge.refunded", "limit": 1}).data[0]
    assert told.data.object["payment_intent"] == intent
    back = client.v1.invoice_payments.list({"payment": {"type": "payment_intent", "payment_intent": intent}}).data
    assert [one.invoice for one in back] == [invoice.id]


def test_a_dispute_is_opened_answered_and_closed(client: stripe.StripeClient, emulator: Emulator) -> None:
    customer = a_customer(client)
    a_subscription(client, customer.id)
    charge = client.v1.charges.list({"customer": customer.id}).data[0]
    opened = emulator.control("POST", "/disputes", {"charge": charge.id, "reason": "product_not_received"})
    dispute = client.v1.disputes.retrieve(opened["id"])
    assert (dispute.charge, dispute.status, dispute.reason) == (charge.id, "needs_response", "product_not_received")
    assert client.v1.charges.retrieve(charge.id).disputed
    answered = client.v1.disputes.update(
        dispute.id, {"evidence": {"uncategorized_text": "It was delivered."}, "submit": True}
    )
    assert answered.status == "under_review"
    emulator.control("POST", "/disputes/end", {"dispute": dispute.id, "status": "won"})
    assert client.v1.disputes.retrieve(dispute.id).status == "won"
    told = eventually(lambda: client.v1.events.list({"type": "charge.dispute.*"}).data)
    assert {event.type.rpartition(".")[2] for event in told} == {
        "created",
        "updated",
        "closed",
        "funds_withdrawn",
        "funds_reinstated",
    }
