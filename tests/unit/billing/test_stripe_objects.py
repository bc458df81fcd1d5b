"""Stripe's objects are read where the pinned version of its API has each field."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from services.billing.stripe_objects import read_checkout, read_customer, read_invoice, read_subscription

FIXTURES: Final = Path(__file__).parents[3].parent / "shared" / "data" / "stripe-fixtures3.json"
USER: Final = "01900000-0000-7000-8000-000000000001"


@pytest.fixture(scope="module")
def resources() -> dict[str, Any]:
    if not FIXTURES.is_file():
        pytest.skip("../shared/data/stripe-fixtures3.json is not here")
    return json.loads(FIXTURES.read_text(encoding="utf-8"))["resources"]


def test_the_published_shapes_are_read(resources: dict[str, Any]) -> None:
    subscription = read_subscription(resources["subscription"], past_due_since=None)
    assert subscription.id == resources["subscription"]["id"]
    assert subscription.stripe_customer_id == resources["subscription"]["customer"]
    assert [price.id for price in subscription.prices] == [
        item["price"]["id"] for item in resources["subscription"]["items"]["data"]
    ]
    invoice = read_invoice(resources["invoice"])
    assert (invoice.status, invoice.amount_due_minor) == (
        resources["invoice"]["status"],
        resources["invoice"]["amount_due"],
    )
    assert read_customer(resources["customer"]).claimed_user_id is None
    assert read_checkout(resources["checkout.session"]).id == resources["checkout.session"]["id"]


def test_a_subscription_s_period_is_its_items() -> None:
    facts: dict[str, Any] = {
        "id": "sub_1",
        "customer": {"id": "cus_1", "object": "customer"},
        "status": "active",
        "created": 1_700_000_000,
        # As before 2025-03-31.basil; a reader of these would be wrong without noticing.
        "current_period_start": 1,
        "current_period_end": 2,
        "metadata": {"user_id": USER},
        "items": {
            "data": [
                {
                    "current_period_start": 1_700_000_000,
                    "current_period_end": 1_702_592_000,
                    "price": {"id": "price_1", "lookup_key": "pro_monthly", "metadata": {}},
                }
            ]
        },
    }
    subscription = read_subscription(facts, past_due_since=None)
    assert subscription.current_period_start == datetime.fromtimestamp(1_700_000_000, tz=UTC)
    assert subscription.current_period_end == datetime.fromtimestamp(1_702_592_000, tz=UTC)
    assert subscription.stripe_customer_id == "cus_1"


def test_an_invoice_s_subscription_and_user_are_its_parent_s() -> None:
    facts: dict[str, Any] = {
        "id": "in_1",
        "customer": "cus_1",
        "status": "open",
        "created": 1_700_000_000,
        "currency": "usd",
        "amount_due": 2900,
        "amount_paid": 0,
        "attempt_count": 1,
        "subscription": "sub_of_an_old_version",
        "parent": {
            "type": "subscription_details",
            "subscription_details": {"subscription": "sub_1", "metadata": {"user_id": USER}},
        },
    }
    invoice = read_invoice(facts)
    assert (invoice.stripe_subscription_id, str(invoice.claimed_user_id)) == ("sub_1", USER)
