"""Stripe's signature and the shape of its events; signed by Stripe's own library wherever a signature is right."""

from collections.abc import Callable
from typing import Any, Final, cast

import orjson
import pytest
import stripe

from services.billing.webhook import (
    ForgedWebhook,
    NotOurEvent,
    check_signature,
    object_to_refresh,
    parse_event,
)

SECRET: Final = "whsec_0123456789abcdef"
NOW: Final = 1_795_000_000


def sign(payload: bytes, secret: str = SECRET, timestamp: int = NOW) -> str:
    make = cast("Callable[..., str]", stripe.WebhookSignature.generate_signature_header)  # pyright: ignore[reportUnknownMemberType]
    return make(payload.decode(), secret, timestamp)


def an_event(**changes: Any) -> dict[str, Any]:
    event: dict[str, Any] = {
        "id": "evt_1",
        "object": "event",
        "type": "customer.subscription.updated",
        "created": NOW,
        "livemode": False,
        "api_version": "2026-10-28.endive",
        "data": {"object": {"id": "sub_1", "object": "subscription", "customer": "cus_1", "status": "active"}},
    }
    return {**event, **changes}


def a_payload(**changes: Any) -> bytes:
    return orjson.dumps(an_event(**changes))


def test_stripe_s_own_signature_is_accepted() -> None:
    payload = a_payload()
    assert check_signature(payload, [sign(payload)], [SECRET]) == NOW


def test_either_of_two_secrets_is_accepted_during_rotation() -> None:
    payload = a_payload()
    for secret in ("whsec_old_0123456789", "whsec_new_0123456789"):
        secrets = ["whsec_old_0123456789", "whsec_new_0123456789"]
        assert check_signature(payload, [sign(payload, secret)], secrets) == NOW


def test_one_valid_of_several_signatures_is_enough() -> None:
    payload = a_payload()
    header = f"{sign(payload, 'whsec_other_one_0123')},{sign(payload).split(',')[1]}"
    assert check_signature(payload, [header], [SECRET]) == NOW


def forged_headers() -> dict[str, list[str]]:
    good = sign(a_payload())
    timestamp, signature = good.split(",")
    return {
        "none": [],
        "empty": [""],
        "twice": [good, good],
        "garbage": ["\x00\xff===,,,"],
        "wrong secret": [sign(a_payload(), "whsec_wrong")],
        "no signature": [timestamp],
        "no time": [signature],
        "two times": [f"{timestamp},{timestamp},{signature}"],
        "another time": [f"t={NOW + 1},{signature}"],
        "a time that is no number": [f"t=NaN,{signature}"],
        "a negative time": [f"t=-{NOW},{signature}"],
        "a time in other digits": [f"t=١٢٣,{signature}"],
        "v0 only": [good.replace("v1=", "v0=")],
        "signature not of ascii": [f"{timestamp},v1=é"],
        "cut": [good[:-1]],
        "too long": [good + ",v1=" + "0" * 4096],
    }


@pytest.mark.parametrize("name", list(forged_headers()))
def test_a_forged_header_is_refused(name: str) -> None:
    with pytest.raises(ForgedWebhook):
        check_signature(a_payload(), forged_headers()[name], [SECRET])


@pytest.mark.parametrize(
    "changed",
    [a_payload() + b" ", b"\xef\xbb\xbf" + a_payload(), orjson.dumps(an_event(), option=orjson.OPT_INDENT_2), b""],
    ids=["a space more", "a byte order mark", "serialised again", "empty"],
)
def test_a_body_that_was_touched_is_refused(changed: bytes) -> None:
    with pytest.raises(ForgedWebhook):
        check_signature(changed, [sign(a_payload())], [SECRET])


def test_no_secret_accepts_nothing() -> None:
    payload = a_payload()
    with pytest.raises(ForgedWebhook):
        check_signature(payload, [sign(payload, "")], [])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"{}",
        a_payload(id=None),
        a_payload(id="evt 1"),
        a_payload(type=""),
        a_payload(type=7),
        a_payload(created="now"),
        a_payload(data={}),
        a_payload(data={"object": []}),
        a_payload(object="v2.core.event"),
        a_payload(account="acct_other"),
        a_payload(livemode=True),
        a_payload(livemode="false"),
    ],
)
def test_what_is_no_event_of_ours_is_refused(body: bytes) -> None:
    with pytest.raises(NotOurEvent):
        parse_event(body, is_live=False)


def test_a_live_key_refuses_test_events() -> None:
    with pytest.raises(NotOurEvent):
        parse_event(a_payload(), is_live=True)


def test_what_names_a_person_is_not_kept() -> None:
    person = {"id": "cus_1", "object": "customer", "email": "a@example.com", "name": "A", "metadata": {"phone": "1"}}
    event = parse_event(a_payload(type="customer.updated", data={"object": person}), is_live=False)
    assert event.payload == {"id": "cus_1", "object": "customer"}
    assert event.stripe_customer_id == "cus_1"


@pytest.mark.parametrize(
    ("event_type", "object_id", "refreshed"),
    [
        ("customer.subscription.updated", "sub_1", "sub_1"),
        ("checkout.session.completed", "cs_test_1", "cs_test_1"),
        ("invoice.paid", "in_1", "in_1"),
        ("customer.deleted", "cus_1", "cus_1"),
        ("invoice.upcoming", "upcoming_in_1", None),
        ("invoice.upcoming", "in_1", None),
        ("invoice.upcoming", None, None),
        ("charge.succeeded", "ch_1", None),
        ("something.new", "new_1", None),
        ("customer.source.created", "card_1", None),
    ],
)
def test_an_event_points_at_the_object_to_fetch(event_type: str, object_id: str | None, refreshed: str | None) -> None:
    event = parse_event(a_payload(type=event_type, data={"object": {"id": object_id}}), is_live=False)
    assert object_to_refresh(event) == refreshed


def a_thin_payload(**changes: Any) -> bytes:
    event = {
        "id": "evt_test_65",
        "object": "v2.core.event",
        "type": "v1.billing.meter.error_report_triggered",
        "created": "2026-11-23T12:00:00.000Z",
        "livemode": False,
        "context": None,
        "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
    }
    return orjson.dumps({**event, **changes})


def test_a_thin_event_of_a_meter_points_at_itself() -> None:
    event = parse_event(a_thin_payload(), is_live=False)
    assert (event.object_id, object_to_refresh(event)) == ("evt_test_65", "evt_test_65")
    assert event.payload == {"related_object": "mtr_1"}
    other = parse_event(a_thin_payload(type="v2.core.health.something", related_object=None), is_live=False)
    assert object_to_refresh(other) is None


@pytest.mark.parametrize(
    "changes",
    [{"livemode": True}, {"context": "acct_other"}, {"created": "yesterday"}, {"created": 7}, {"id": "evt 1"}],
)
def test_a_thin_event_that_is_not_ours_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(NotOurEvent):
        parse_event(a_thin_payload(**changes), is_live=False)
