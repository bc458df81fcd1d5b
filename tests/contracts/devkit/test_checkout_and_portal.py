"""The hosted pages, by hand and by script."""

from typing import Any

import httpx
import pytest
import stripe
from emulation import Emulator, a_customer, a_subscription, item_of, the_price


def a_session(client: stripe.StripeClient, **more: object) -> stripe.checkout.Session:
    fields: Any = {
        "mode": "subscription",
        "line_items": [{"price": the_price(client).id, "quantity": 1}],
        "success_url": "http://shop.example/thanks?session={CHECKOUT_SESSION_ID}",
        "cancel_url": "http://shop.example/back",
        **more,
    }
    return client.v1.checkout.sessions.create(fields)


def test_paying_on_the_page_starts_the_subscription_and_redirects(client: stripe.StripeClient) -> None:
    customer = a_customer(client, card=None)
    session = a_session(
        client,
        customer=customer.id,
        client_reference_id="user-1",
        metadata={"tier": "pro"},
        subscription_data={"metadata": {"user_id": "user-1"}},
    )
    assert session.url is not None
    assert (session.status, session.payment_status, session.amount_total) == ("open", "unpaid", 2900)
    page = httpx.get(session.url)
    assert page.status_code == 200
    assert "No money moves" in page.text
    assert "$29.00" in page.text
    paid = httpx.post(f"{session.url}/pay", data={"card": "pm_card_visa"})
    assert paid.status_code == 303
    assert paid.headers["location"] == f"http://shop.example/thanks?session={session.id}"

    done = client.v1.checkout.sessions.retrieve(session.id, {"expand": ["line_items", "subscription"]})
    assert (done.status, done.payment_status, done.url) == ("complete", "paid", None)
    assert done.client_reference_id == "user-1"
    assert done.metadata is not None
    assert done.metadata["tier"] == "pro"
    assert done.line_items is not None
    assert done.line_items.data[0].description == "Pro"
    assert isinstance(done.subscription, stripe.Subscription)
    assert (done.subscription.status, done.subscription.metadata["user_id"]) == ("active", "user-1")
    assert httpx.get(session.url).status_code == 410


def test_a_declined_card_leaves_the_session_open(client: stripe.StripeClient) -> None:
    session = a_session(client, customer_email="shopper@b.example")
    assert session.url is not None
    page = httpx.post(f"{session.url}/pay", data={"card": "pm_card_chargeDeclined"})
    assert page.status_code == 402
    assert "declined" in page.text
    answer = httpx.post(f"{session.url}/complete", json={"card": "pm_card_chargeCustomerFail"})
    assert answer.status_code == 402
    assert client.v1.checkout.sessions.retrieve(session.id).status == "open"
    assert not client.v1.customers.list({"email": "shopper@b.example"}).data

    answer = httpx.post(f"{session.url}/complete", json={})
    assert answer.status_code == 200
    assert answer.json()["subscription"].startswith("sub_")
    assert client.v1.customers.retrieve(answer.json()["customer"]).email == "shopper@b.example"


def test_a_planned_decline_is_used_up_by_the_attempt(client: stripe.StripeClient, emulator: Emulator) -> None:
    customer = a_customer(client, card=None)
    session = a_session(client, customer=customer.id)
    emulator.control("POST", "/outcomes", {"customer": customer.id, "outcomes": ["insufficient_funds"]})
    first = httpx.post(f"{session.url}/complete")
    assert (first.status_code, first.json()["error"]["decline_code"]) == (402, "insufficient_funds")
    assert httpx.post(f"{session.url}/complete").status_code == 200


def test_a_session_can_be_expired_and_then_not_paid(client: stripe.StripeClient) -> None:
    session = a_session(client)
    assert client.v1.checkout.sessions.expire(session.id).status == "expired"
    assert httpx.post(f"{session.url}/complete").status_code == 400
    with pytest.raises(stripe.InvalidRequestError, match="Only Checkout Sessions"):
        client.v1.checkout.sessions.expire(session.id)


def test_a_trial_needs_no_payment_today(client: stripe.StripeClient) -> None:
    session = a_session(client, subscription_data={"trial_period_days": 14})
    assert session.amount_total == 0
    done = httpx.post(f"{session.url}/complete").json()
    assert done["payment_status"] == "no_payment_required"
    assert client.v1.subscriptions.retrieve(done["subscription"]).status == "trialing"


def test_payment_mode_takes_one_payment(client: stripe.StripeClient) -> None:
    session = client.v1.checkout.sessions.create(
        {
            "mode": "payment",
            "line_items": [
                {
                    "price_data": {"currency": "eur", "unit_amount": 500, "product_data": {"name": "Credits"}},
                    "quantity": 3,
                }
            ],
            "success_url": "http://shop.example/thanks",
            "payment_intent_data": {"metadata": {"order": "7"}},
        }
    )
    done = httpx.post(f"{session.url}/complete").json()
    intent = client.v1.payment_intents.retrieve(done["payment_intent"])
    assert (intent.status, intent.amount_received, intent.currency) == ("succeeded", 1500, "eur")
    assert intent.metadata["order"] == "7"


def test_an_unknown_session_has_a_page_that_says_so(emulator: Emulator) -> None:
    page = httpx.get(f"{emulator.url}/checkout/cs_test_none")
    assert page.status_code == 404
    assert "No such checkout session" in page.text


def test_the_portal_cancels_resumes_and_switches(client: stripe.StripeClient) -> None:
    customer = a_customer(client)
    subscription = a_subscription(client, customer.id)
    portal = client.v1.billing_portal.sessions.create(
        {"customer": customer.id, "return_url": "http://shop.example/account"}
    )
    page = httpx.get(portal.url)
    assert page.status_code == 200
    assert "Cancel at the end of the period" in page.text
    assert "http://shop.example/account" in page.text

    assert httpx.post(f"{portal.url}/cancel", data={"subscription": subscription.id}).status_code == 303
    ending = client.v1.subscriptions.retrieve(subscription.id)
    assert ending.cancel_at_period_end
    assert ending.cancel_at == item_of(ending).current_period_end
    assert "Keep the plan" in httpx.get(portal.url).text

    asked = {"Accept": "application/json"}
    resumed = httpx.post(f"{portal.url}/resume", data={"subscription": subscription.id}, headers=asked).json()
    assert (resumed["cancel_at"], resumed["cancel_at_period_end"]) == (None, False)

    other = the_price(client, "pro_plus_monthly")
    switched = httpx.post(
        f"{portal.url}/switch", json={"subscription": subscription.id, "price": other.id}, headers=asked
    ).json()
    assert switched["items"]["data"][0]["price"]["lookup_key"] == "pro_plus_monthly"


def test_the_portal_shows_nothing_of_another_customer(client: stripe.StripeClient) -> None:
    subscription = a_subscription(client, a_customer(client).id)
    portal = client.v1.billing_portal.sessions.create({"customer": a_customer(client).id})
    answer = httpx.post(
        f"{portal.url}/cancel", data={"subscription": subscription.id}, headers={"Accept": "application/json"}
    )
    assert answer.status_code == 404
    assert client.v1.subscriptions.retrieve(subscription.id).cancel_at is None


def test_portal_configurations_are_kept(client: stripe.StripeClient) -> None:
    made = client.v1.billing_portal.configurations.create(
        {"features": {"subscription_cancel": {"enabled": True, "mode": "immediately"}}}
    )
    assert client.v1.billing_portal.configurations.retrieve(made.id).features.subscription_cancel.mode == "immediately"
    portal = client.v1.billing_portal.sessions.create({"customer": a_customer(client).id, "configuration": made.id})
    assert portal.configuration == made.id
