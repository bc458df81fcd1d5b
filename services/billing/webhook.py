"""Stripe's webhook before the database: is the signature theirs, and is the body an event meant for us.

Nothing is parsed until the signature over the raw bytes has been checked. The scheme is Stripe's `v1`:
https://docs.stripe.com/webhooks/signature#verify-manually
"""

import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final, cast

import orjson

from libs.common.errors import BadRequest

TOLERANCE_S: Final = 300
MAX_HEADER_LENGTH: Final = 2048
_TIMESTAMP: Final = re.compile(r"[0-9]{1,11}")
_ID: Final = re.compile(r"[A-Za-z0-9_]{1,255}")
_TYPE: Final = re.compile(r"[a-z0-9_.]{1,255}")
_USAGE_ERRORS: Final = {"v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"}

# What a stored payload may keep of the object: enough to see what an event was about, nothing that names a person.
_KEPT: Final = (
    "id",
    "object",
    "customer",
    "subscription",
    "invoice",
    "status",
    "mode",
    "payment_status",
    "client_reference_id",
    "billing_reason",
    "amount_due",
    "amount_paid",
    "amount_total",
    "attempt_count",
    "currency",
    "cancel_at",
    "cancel_at_period_end",
    "created",
)


class ForgedWebhook(BadRequest):
    code = "billing.webhook_signature"


class WebhookOutOfTime(BadRequest):
    """Signed by Stripe, but not just now: a replay, or a clock that is wrong."""

    code = "billing.webhook_out_of_time"


class NotOurEvent(BadRequest):
    code = "billing.webhook_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEvent:
    """A genuine event, reduced: a hint which object to fetch again."""

    id: str
    type: str
    object_id: str | None
    stripe_customer_id: str | None
    is_live: bool
    api_version: str | None
    created_at: datetime
    payload: Mapping[str, Any]


def check_signature(payload: bytes, headers: Sequence[str], secrets: Sequence[str]) -> int:
    """Return when the payload was signed, in seconds since 1970; raises ForgedWebhook unless it was, with a secret.

    Several secrets are for rotation. Whether the instant is near now is the caller's to check: the database has the
    clock, and a forgery must not reach the database.
    """
    if len(headers) != 1 or len(headers[0]) > MAX_HEADER_LENGTH:
        raise ForgedWebhook("Exactly one Stripe-Signature header is needed.")
    parts = [part.strip().partition("=") for part in headers[0].split(",")]
    timestamps = [value for name, _, value in parts if name == "t"]
    signatures = [value.encode("latin-1", "replace") for name, _, value in parts if name == "v1"]
    if len(timestamps) != 1 or not _TIMESTAMP.fullmatch(timestamps[0]) or not signatures:
        raise ForgedWebhook("The Stripe-Signature header cannot be read.")
    signed = timestamps[0].encode() + b"." + payload
    expected = [hmac.new(secret.encode(), signed, sha256).hexdigest().encode() for secret in secrets]
    # No short cut: every pair is compared, each in constant time.
    if not any([hmac.compare_digest(ours, theirs) for ours in expected for theirs in signatures]):  # noqa: C419
        raise ForgedWebhook("The signature does not belong to this body.")
    return int(timestamps[0])


def parse_event(payload: bytes, *, is_live: bool) -> WebhookEvent:
    """Read a body whose signature was checked; raises NotOurEvent unless it is an event of our own account and mode."""
    try:
        body: Any = orjson.loads(payload)
    except orjson.JSONDecodeError:
        raise NotOurEvent("The body is not JSON.") from None
    match body:
        case {"object": "v2.core.event"}:
            return _thin_event(cast("Mapping[str, Any]", body), is_live=is_live)
        case {
            "object": "event",
            "id": str(event_id),
            "type": str(event_type),
            "created": int(created),
            "livemode": bool(livemode),
            "data": {"object": dict()},
        } if _ID.fullmatch(event_id) and _TYPE.fullmatch(event_type) and 0 < created < 2**33:
            pass
        case _:
            raise NotOurEvent("The body is not a Stripe event.")
    envelope = cast("Mapping[str, Any]", body)
    subject = cast("Mapping[str, Any]", envelope["data"]["object"])
    _require_ours(account=envelope.get("account"), livemode=livemode, is_live=is_live)
    api_version = envelope.get("api_version")
    return WebhookEvent(
        id=event_id,
        type=event_type,
        object_id=_id_or_none(subject.get("id")),
        stripe_customer_id=customer_of(subject),
        is_live=livemode,
        api_version=_plain(api_version),
        created_at=datetime.fromtimestamp(created, tz=UTC),
        payload={name: subject[name] for name in _KEPT if _is_kept(subject.get(name))},
    )


def _thin_event(body: Mapping[str, Any], *, is_live: bool) -> WebhookEvent:
    """An event that carries no object, only its own id to fetch it by. https://docs.stripe.com/event-destinations"""
    match body:
        case {"id": str(event_id), "type": str(event_type), "created": str(created), "livemode": bool(livemode)} if (
            _ID.fullmatch(event_id) and _TYPE.fullmatch(event_type)
        ):
            pass
        case _:
            raise NotOurEvent("The body is not a Stripe event.")
    try:
        created_at = datetime.fromisoformat(created).astimezone(UTC)
    except (ValueError, OverflowError):
        raise NotOurEvent("The body is not a Stripe event.") from None
    _require_ours(account=body.get("context"), livemode=livemode, is_live=is_live)
    related = body.get("related_object")
    return WebhookEvent(
        id=event_id,
        type=event_type,
        object_id=event_id,
        stripe_customer_id=None,
        is_live=livemode,
        api_version=None,
        created_at=created_at,
        payload={"related_object": _id_or_none(cast("Mapping[str, Any]", related).get("id"))}
        if isinstance(related, dict)
        else {},
    )


def _require_ours(*, account: object, livemode: bool, is_live: bool) -> None:
    if account is not None:
        raise NotOurEvent("The event belongs to a connected account.")
    if livemode is not is_live:
        raise NotOurEvent("The event is of the other mode (live or test) than the key.")


def _plain(value: Any) -> str | None:
    return value if isinstance(value, str) and "\0" not in value else None


def _is_kept(value: Any) -> bool:
    # PostgreSQL stores no NUL; nothing of Stripe's has one.
    return isinstance(value, int | bool) or _plain(value) is not None


def customer_of(subject: Mapping[str, Any]) -> str | None:
    if subject.get("object") == "customer":
        return _id_or_none(subject.get("id"))
    customer = subject.get("customer")
    return _id_or_none(cast("Mapping[str, Any]", customer).get("id") if isinstance(customer, dict) else customer)


def _id_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) and _ID.fullmatch(value) else None


def object_to_refresh(event: WebhookEvent) -> str | None:
    """Which object the event asks us to fetch again; None where it changes nothing here."""
    if event.type in _USAGE_ERRORS:
        return event.id
    # invoice.upcoming speaks of an invoice that does not exist yet.
    wanted = ("customer.subscription.", "checkout.session.", "invoice.")
    prefixes = ("sub_", "cs_", "in_", "cus_")
    if event.object_id is None or event.type == "invoice.upcoming" or not event.object_id.startswith(prefixes):
        return None
    if event.type.startswith(wanted) or event.type in {"customer.created", "customer.updated", "customer.deleted"}:
        return event.object_id
    return None
