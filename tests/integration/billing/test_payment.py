"""A payment's whole way: checkout, Stripe, signed webhook, fetched object, stored plan, event in the outbox."""

import asyncio
from uuid import UUID

from tests.harness.billing import Billing
from tests.harness.services import service_headers


async def test_a_paid_checkout_becomes_a_plan_and_an_event(billing: Billing, user_id: UUID) -> None:
    assert await billing.plan(user_id) == {
        "tier": "free",
        "status": "inactive",
        "current_period_start": None,
        "current_period_end": None,
        "cancel_at": None,
        "trial_end": None,
        "next": None,
    }
    session = await billing.buy(user_id, "pro")
    plan = await billing.plan_becomes(user_id, "pro", "active")
    assert plan["current_period_end"] > plan["current_period_start"]
    assert plan["next"] == {"what": "renews", "at": plan["current_period_end"]}
    (row,) = await billing.database.fetch("SELECT * FROM billing.subscriptions")
    assert (row["id"], row["user_id"], row["tier"]) == (session["subscription"], user_id, "pro")
    (event,) = await billing.published("billing.subscription_changed.v1", user_id)
    assert (event["tier"], event["status"], event["version"]) == ("pro", "active", 1)
    assert event["stripe_customer_id"] == session["customer"]
    await billing.all_handled()
    (paid,) = await billing.published("billing.invoice_paid.v1", user_id)
    assert (paid["amount_minor"], paid["currency"]) == (2900, "usd")
    assert await billing.database.fetchval("SELECT status FROM billing.checkouts") == "complete"


async def test_two_checkouts_at_once_are_one_session_of_one_customer(billing: Billing, user_id: UUID) -> None:
    answers = await asyncio.gather(*(billing.checkout(user_id) for _ in range(5)))
    assert [answer.status_code for answer in answers] == [201] * 5, [answer.text for answer in answers]
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert len((await billing.stripe.api("GET", "customers"))["data"]) == 1
    assert len((await billing.stripe.api("GET", "checkout/sessions"))["data"]) == 1


async def test_who_has_a_subscription_is_pointed_to_the_portal(billing: Billing, user_id: UUID) -> None:
    await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    answer = await billing.checkout(user_id, "pro+")
    assert answer.status_code == 409
    assert answer.json()["code"] == "billing.already_subscribed"
    assert answer.json()["portal"] == "/v1/billing/portal"


async def test_a_cancelled_subscription_ends_the_plan(billing: Billing, user_id: UUID) -> None:
    session = await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.stripe.api("DELETE", f"subscriptions/{session['subscription']}")
    await billing.plan_becomes(user_id, "free", "canceled")
    changes = await billing.published("billing.subscription_changed.v1", user_id)
    assert [(change["version"], change["tier"]) for change in changes] == [(1, "pro"), (2, "free")]


async def test_plans_show_what_stripe_charges(quiet_billing: Billing) -> None:
    (price,) = (await quiet_billing.stripe.api("GET", "prices", **{"lookup_keys[0]": "pro_monthly"}))["data"]
    await quiet_billing.stripe.api(
        "POST",
        "prices",
        **{
            "product": price["product"],
            "currency": "eur",
            "unit_amount": "3100",
            "recurring[interval]": "month",
            "lookup_key": "pro_monthly",
            "transfer_lookup_key": "true",
        },
    )
    answer = await quiet_billing.client.get("/internal/plans", headers=service_headers("billing"))
    shown = {item["tier"]: (item["price_minor"], item["currency"]) for item in answer.json()["items"]}
    assert shown == {"free": (None, None), "pro": (3100, "eur"), "pro+": (9900, "usd"), "enterprise": (49900, "usd")}
