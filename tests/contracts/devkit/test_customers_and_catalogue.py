"""Customers, cards, products and prices."""

from decimal import Decimal

import pytest
import stripe
from emulation import a_customer, a_subscription, the_price


def test_a_customer_is_made_changed_found_and_deleted(client: stripe.StripeClient) -> None:
    made = client.v1.customers.create(
        {
            "email": "ada@b.example",
            "name": "Ada",
            "metadata": {"user_id": "7", "old": "x"},
            "address": {"country": "DE"},
        }
    )
    changed = client.v1.customers.update(made.id, {"name": "", "metadata": {"old": "", "new": "y"}})
    assert changed.name is None
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"user_id": "7", "new": "y"}
    assert changed.address is not None
    assert changed.address.country == "DE"
    assert [one.id for one in client.v1.customers.list({"email": "ada@b.example"}).data] == [made.id]
    assert [one.id for one in client.v1.customers.search({"query": 'metadata["user_id"]:"7"'}).data] == [made.id]

    assert client.v1.customers.delete(made.id).deleted
    assert client.v1.customers.retrieve(made.id).deleted
    assert not client.v1.customers.list({"email": "ada@b.example"}).data
    with pytest.raises(stripe.InvalidRequestError) as refused:
        client.v1.customers.update(made.id, {"name": "Ghost"})
    assert (refused.value.code, refused.value.http_status) == ("resource_missing", 404)


def test_deleting_a_customer_ends_the_subscriptions(client: stripe.StripeClient) -> None:
    customer = a_customer(client)
    subscription = a_subscription(client, customer.id)
    client.v1.customers.delete(customer.id)
    assert client.v1.subscriptions.retrieve(subscription.id).status == "canceled"


def test_cards_are_attached_used_and_detached(client: stripe.StripeClient) -> None:
    customer = a_customer(client)
    (method,) = client.v1.payment_methods.list({"customer": customer.id}).data
    assert method.card is not None
    assert (method.card.last4, method.customer) == ("4242", customer.id)
    assert client.v1.payment_methods.detach(method.id).customer is None
    settings = client.v1.customers.retrieve(customer.id).invoice_settings
    assert settings is not None
    assert settings.default_payment_method is None
    with pytest.raises(stripe.CardError) as declined:
        client.v1.payment_methods.attach("pm_card_chargeDeclined", {"customer": customer.id})
    assert (declined.value.code, declined.value.http_status) == ("card_declined", 402)


def test_seeded_plans_are_prices_with_lookup_keys(client: stripe.StripeClient) -> None:
    found = client.v1.prices.list({"lookup_keys": ["pro_monthly", "pro_plus_monthly"], "expand": ["data.product"]})
    shown = {price.lookup_key: (price.unit_amount, price.product) for price in found.data}
    assert {key: amount for key, (amount, _) in shown.items()} == {"pro_monthly": 2900, "pro_plus_monthly": 9900}
    product = shown["pro_monthly"][1]
    assert isinstance(product, stripe.Product)
    assert product.name == "Pro"


def test_a_lookup_key_moves_only_when_told_to(client: stripe.StripeClient) -> None:
    product = client.v1.products.create({"name": "Thing"})
    first = client.v1.prices.create(
        {"product": product.id, "currency": "usd", "unit_amount": 100, "lookup_key": "thing"}
    )
    with pytest.raises(stripe.InvalidRequestError, match="already uses that lookup key"):
        client.v1.prices.create({"product": product.id, "currency": "usd", "unit_amount": 200, "lookup_key": "thing"})
    second = client.v1.prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount": 200,
            "lookup_key": "thing",
            "transfer_lookup_key": True,
        }
    )
    assert the_price(client, "thing").id == second.id
    assert client.v1.prices.retrieve(first.id).lookup_key is None
    with pytest.raises(stripe.InvalidRequestError, match="cannot be deleted"):
        client.v1.products.delete(product.id)


def test_a_price_may_have_fractions_of_a_cent(client: stripe.StripeClient) -> None:
    product = client.v1.products.create({"name": "Tokens"})
    price = client.v1.prices.create(
        {"product": product.id, "currency": "usd", "unit_amount_decimal": Decimal("0.25"), "active": False}
    )
    assert (price.unit_amount, price.unit_amount_decimal, price.active) == (None, Decimal("0.25"), False)
    assert client.v1.products.update(product.id, {"active": False}).active is False
