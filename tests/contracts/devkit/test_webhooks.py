"""Webhook deliveries: signed, repeated, and disturbed on request."""

from collections.abc import Generator

import pytest
import stripe
from emulation import Emulator, Receiver, a_customer, a_subscription, eventually, the_price


@pytest.fixture
def secret(client: stripe.StripeClient, receiver: Receiver) -> Generator[str]:
    """An endpoint of the test's own at the receiver; gives its signing secret."""
    endpoint = client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["*"]})
    assert endpoint.secret is not None
    yield endpoint.secret
    client.v1.webhook_endpoints.delete(endpoint.id)


def test_deliveries_are_signed_whole_and_prompt(client: stripe.StripeClient, receiver: Receiver, secret: str) -> None:
    customer = client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "webhook-1"})
    client.v1.customers.update(customer.id, {"name": "Grace", "metadata": {"a": "1"}})
    got = eventually(lambda: receiver.events(secret) if len(receiver.got) == 2 else None, within_s=5)
    made, changed = sorted(got, key=lambda event: event.type)
    assert (made.type, changed.type) == ("customer.created", "customer.updated")
    assert (made.api_version, made.livemode, made.pending_webhooks) == ("2026-10-28.endive", False, 1)
    assert made.request is not None
    assert made.request.idempotency_key == "webhook-1"
    assert made.request.id is not None
    assert changed.data.previous_attributes is not None
    assert changed.data.previous_attributes.to_dict() == {"name": "Ada", "metadata": {"a": None}}
    assert changed.data.object["name"] == "Grace"
    with pytest.raises(stripe.SignatureVerificationError):
        receiver.events("whsec_wrong")
    eventually(lambda: client.v1.events.retrieve(made.id).pending_webhooks == 0)


def test_a_checkout_tells_the_whole_story(client: stripe.StripeClient, receiver: Receiver, secret: str) -> None:
    subscription = a_subscription(client, a_customer(client).id)
    client.v1.subscriptions.update(
        subscription.id, {"items": [{"id": subscription["items"].data[0].id, "quantity": 2}]}
    )
    client.v1.subscriptions.cancel(subscription.id)
    expected = {
        "customer.created",
        "payment_method.attached",
        "customer.subscription.created",
        "customer.subscription.updated",
        "customer.subscription.deleted",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "invoice_payment.paid",
        "payment_intent.succeeded",
        "charge.succeeded",
    }
    eventually(lambda: expected <= set(receiver.types(secret)))


def test_a_refused_delivery_comes_again_until_it_is_taken(
    client: stripe.StripeClient, receiver: Receiver, secret: str
) -> None:
    receiver.statuses = [500, 302, 404]
    customer = client.v1.customers.create({})
    eventually(lambda: len(receiver.got) == 4)
    assert {event.data.object["id"] for event in receiver.events(secret)} == {customer.id}
    assert len({event.id for event in receiver.events(secret)}) == 1
    eventually(lambda: not client.v1.events.list({"delivery_success": False}).data)


def test_an_endpoint_gets_only_what_it_asked_for(client: stripe.StripeClient, receiver: Receiver) -> None:
    endpoint = client.v1.webhook_endpoints.create({"url": receiver.url, "enabled_events": ["product.created"]})
    assert client.v1.webhook_endpoints.retrieve(endpoint.id).to_dict().get("secret") is None
    client.v1.customers.create({})
    client.v1.products.create({"name": "Wanted"})
    eventually(lambda: receiver.got)
    assert receiver.types(endpoint.secret or "") == ["product.created"]
    client.v1.webhook_endpoints.update(endpoint.id, {"disabled": True})
    client.v1.products.create({"name": "Unheard"})
    client.v1.webhook_endpoints.update(endpoint.id, {"disabled": False, "enabled_events": ["*"]})
    client.v1.products.create({"name": "Heard again"})
    eventually(lambda: len(receiver.got) == 2)
    client.v1.webhook_endpoints.delete(endpoint.id)
    assert endpoint.id not in [one.id for one in client.v1.webhook_endpoints.list().data]


def test_deliveries_are_paused_doubled_and_sent_again(
    client: stripe.StripeClient, emulator: Emulator, receiver: Receiver, secret: str
) -> None:
    emulator.control("POST", "/deliveries", {"is_paused": True, "copies": 2})
    client.v1.customers.create({})
    assert emulator.control("GET", "/deliveries")["counts"]["pending"] >= 1
    assert not receiver.got
    emulator.control("POST", "/deliveries", {"is_paused": False})
    first, second = eventually(lambda: receiver.events(secret) if len(receiver.got) == 2 else None)
    assert first.id == second.id
    emulator.control("POST", "/deliveries", {"copies": 1})
    emulator.control("POST", "/deliveries/redeliver", {"event": first.id})
    eventually(lambda: len(receiver.got) == 3)


def test_deliveries_are_shuffled(
    client: stripe.StripeClient, emulator: Emulator, receiver: Receiver, secret: str
) -> None:
    emulator.control("POST", "/deliveries", {"is_paused": True, "shuffles": True})
    made = [client.v1.customers.create({}).id for _ in range(20)]
    emulator.control("POST", "/deliveries", {"is_paused": False})
    eventually(lambda: len(receiver.got) == 20)
    emulator.control("POST", "/deliveries", {"shuffles": False})
    came = [event.data.object["id"] for event in receiver.events(secret)]
    assert sorted(came) == sorted(made)
    assert came != made


def test_events_are_listed_by_type_and_time(client: stripe.StripeClient) -> None:
    price = the_price(client)
    client.v1.prices.update(price.id, {"nickname": "Pro, monthly"})
    newest = client.v1.events.list({"type": "price.updated", "limit": 1}).data[0]
    assert newest.data.object["id"] == price.id
    assert client.v1.events.list({"types": ["price.updated", "nothing.else"], "limit": 1}).data[0].id == newest.id
    assert {event.type for event in client.v1.events.list({"type": "price.*"}).data} <= {
        "price.created",
        "price.updated",
    }
    assert not client.v1.events.list({"created": {"gt": newest.created + 3600}}).data
