"""Usage by meters: counted once, billed in arrears, and reported when it cannot be counted."""

import time
from decimal import Decimal
from typing import Any

import pytest
import stripe
from emulation import Emulator, Receiver, a_clock, a_customer, advance, eventually, latest_invoice
from stripe.events import V1BillingMeterErrorReportTriggeredEventNotification


def a_meter(client: stripe.StripeClient, name: str, formula: str = "sum") -> stripe.billing.Meter:
    return client.v1.billing.meters.create(
        {"display_name": name, "event_name": name, "default_aggregation": {"formula": formula}}
    )


def report(client: stripe.StripeClient, name: str, customer: str, value: str, **more: object) -> None:
    fields: Any = {"event_name": name, "payload": {"stripe_customer_id": customer, "value": value}, **more}
    client.v1.billing.meter_events.create(fields)


def total(client: stripe.StripeClient, meter: str, customer: str) -> float:
    minute = int(time.time()) // 60 * 60
    rows = client.v1.billing.meters.event_summaries.list(
        meter, {"customer": customer, "start_time": minute - 7200, "end_time": minute + 120}
    )
    return rows.data[0].aggregated_value


def test_an_identifier_counts_once(client: stripe.StripeClient) -> None:
    meter, customer = a_meter(client, "runs_once"), a_customer(client).id
    report(client, "runs_once", customer, "3", identifier="run-1")
    with pytest.raises(stripe.InvalidRequestError, match="already exists with identifier"):
        report(client, "runs_once", customer, "3", identifier="run-1")
    report(client, "runs_once", customer, "4", identifier="run-2")
    assert total(client, meter.id, customer) == 7


@pytest.mark.parametrize(("formula", "expected"), [("sum", 7), ("count", 2), ("last", 4)])
def test_meters_add_up_count_or_take_the_last(client: stripe.StripeClient, formula: str, expected: int) -> None:
    meter, customer = a_meter(client, f"by_{formula}", formula), a_customer(client).id
    now = int(time.time())
    report(client, f"by_{formula}", customer, "4", timestamp=now - 60)
    report(client, f"by_{formula}", customer, "3", timestamp=now - 3600)
    assert total(client, meter.id, customer) == expected


def test_usage_out_of_time_is_refused(client: stripe.StripeClient) -> None:
    a_meter(client, "in_time")
    for timestamp in (int(time.time()) + 600, int(time.time()) - 36 * 86_400):
        with pytest.raises(stripe.InvalidRequestError) as refused:
            report(client, "in_time", "cus_x", "1", timestamp=timestamp)
        assert refused.value.code in {"timestamp_in_future", "timestamp_too_far_in_past"}


def test_usage_that_cannot_be_counted_is_reported_by_a_thin_event(
    client: stripe.StripeClient, receiver: Receiver
) -> None:
    meter = a_meter(client, "reported")
    destination = client.v2.core.event_destinations.create(
        {
            "name": "errors",
            "type": "webhook_endpoint",
            "event_payload": "thin",
            "enabled_events": ["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"],
            "webhook_endpoint": {"url": receiver.url},
            "include": ["webhook_endpoint.signing_secret"],
        }
    )
    assert destination.webhook_endpoint is not None
    secret = destination.webhook_endpoint.signing_secret
    assert secret is not None
    report(client, "reported", "cus_none", "1", identifier="lost-1")
    report(client, "no_such_meter", "cus_none", "1")
    eventually(lambda: len(receiver.got) == 2)
    told = [client.parse_event_notification(one.body, one.signature, secret) for one in receiver.got]
    found = {one.type: one for one in told}
    assert set(found) == {"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"}
    report_event = found["v1.billing.meter.error_report_triggered"]
    assert isinstance(report_event, V1BillingMeterErrorReportTriggeredEventNotification)
    (error,) = report_event.fetch_event().data.reason.error_types
    assert error.code == "meter_event_customer_not_found"
    assert error.sample_errors[0].request.identifier == "lost-1"
    assert report_event.fetch_related_object().id == meter.id
    client.v2.core.event_destinations.delete(destination.id)


def test_metered_usage_is_billed_after_the_period(client: stripe.StripeClient) -> None:
    now = int(time.time())
    clock = a_clock(client, now - 3600)
    customer = a_customer(client, clock=clock).id
    meter = a_meter(client, "billed")
    product = client.v1.products.create({"name": "Tokens"})
    price = client.v1.prices.create(
        {
            "product": product.id,
            "currency": "usd",
            "unit_amount_decimal": Decimal("0.5"),
            "recurring": {"interval": "month", "usage_type": "metered", "meter": meter.id},
        }
    )
    subscription = client.v1.subscriptions.create({"customer": customer, "items": [{"price": price.id}]})
    assert subscription.status == "active"
    report(client, "billed", customer, "1001", timestamp=now - 60)
    advance(client, clock, days=32)
    invoice = latest_invoice(client, subscription.id)
    assert [(line.quantity, line.amount) for line in invoice.lines.data] == [(1001, 501)]
    assert invoice.status == "paid"


def test_a_meter_rests_and_wakes(client: stripe.StripeClient) -> None:
    meter = a_meter(client, "resting")
    assert client.v1.billing.meters.deactivate(meter.id).status == "inactive"
    assert client.v1.billing.meters.reactivate(meter.id).status == "active"
    assert meter.id in [one.id for one in client.v1.billing.meters.list({"status": "active", "limit": 100}).data]


def test_the_second_version_judges_at_once(emulator: Emulator) -> None:
    client = emulator.client()
    a_meter(client, "at_once")
    customer = a_customer(client).id
    taken = client.v2.billing.meter_events.create(
        {"event_name": "at_once", "payload": {"stripe_customer_id": customer, "value": "2"}}
    )
    assert taken.event_name == "at_once"
    with pytest.raises(stripe.InvalidRequestError):
        client.v2.billing.meter_events.create(
            {"event_name": "at_once", "payload": {"stripe_customer_id": "cus_none", "value": "2"}}
        )
