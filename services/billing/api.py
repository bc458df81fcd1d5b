"""HTTP in: Stripe's webhook, and what the gateway asks for on behalf of a user."""

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Request
from pydantic import AfterValidator, Field

from libs.common.clock import iso_millis
from libs.common.database import Database, Record
from libs.common.errors import Invalid
from libs.common.http import CurrentCaller
from libs.common.inputs import Input
from libs.common.plans import Plans
from services.billing import operations, queries
from services.billing.domain import FREE, NEVER_SUBSCRIBED, BillingDisabled, CheckoutLink, Purchase
from services.billing.webhook import check_signature, parse_event

DEFAULT_SUCCESS_PATH: Final = "/billing/success?session_id={CHECKOUT_SESSION_ID}"
DEFAULT_RETURN_PATH: Final = "/billing"


def _check_path(path: str) -> str:
    """A path on the frontend and nothing else: no host (`//`, a backslash), no way up, nothing invisible."""
    steps = path.partition("?")[0].partition("#")[0].split("/")
    if not path.startswith("/") or path.startswith("//") or "\\" in path or ".." in steps:
        raise ValueError("must be a path on the frontend, beginning with a single /")
    if any(character <= " " or character == "\x7f" for character in path):
        raise ValueError("must not contain spaces or control characters")
    return path


FrontendPath = Annotated[str, Field(max_length=500), AfterValidator(_check_path)]


class CheckoutInput(Input):
    tier: str = Field(min_length=1, max_length=50)
    success_path: FrontendPath = DEFAULT_SUCCESS_PATH
    cancel_path: FrontendPath = DEFAULT_RETURN_PATH


class PortalInput(Input):
    return_path: FrontendPath = DEFAULT_RETURN_PATH


@dataclass(frozen=True, slots=True, kw_only=True)
class StripeSide:
    """What needs Stripe: absent without a key. `wake` rouses the job that fetches what an event points at."""

    webhook_secrets: Sequence[str]
    is_live: bool
    open_checkout: Callable[[Purchase], Awaitable[CheckoutLink]]
    open_portal: Callable[[UUID, str], Awaitable[str]]
    wake: Callable[[], None]


class Routes:
    def __init__(self, database: Database, plans: Plans, *, frontend_url: str, stripe: StripeSide | None) -> None:
        self._database = database
        self._plans = plans
        self._frontend_url = frontend_url
        self._stripe = stripe

    def router(self) -> APIRouter:
        router = APIRouter(tags=["billing"])
        router.add_api_route("/webhooks/stripe", self.receive_webhook, methods=["POST"])
        router.add_api_route("/internal/checkout", self.open_checkout, methods=["POST"], status_code=201)
        router.add_api_route("/internal/portal", self.open_portal, methods=["POST"])
        router.add_api_route("/internal/subscription", self.get_subscription, methods=["GET"])
        router.add_api_route("/internal/invoices", self.list_invoices, methods=["GET"])
        router.add_api_route("/internal/plans", self.list_plans, methods=["GET"])
        return router

    async def receive_webhook(self, request: Request) -> Mapping[str, bool]:
        """200 once the event is stored, and again for one that was; 400 without a trace for what is not Stripe's."""
        stripe = self._require_stripe()
        payload = await request.body()
        signed_at = check_signature(payload, request.headers.getlist("stripe-signature"), stripe.webhook_secrets)
        event = parse_event(payload, is_live=stripe.is_live)
        async with self._database.transaction() as conn:
            is_new = await operations.record_event(conn, event, signed_at=signed_at)
        if is_new:
            stripe.wake()
        return {"received": True}

    async def open_checkout(self, caller: CurrentCaller, body: CheckoutInput) -> Mapping[str, str]:
        stripe = self._require_stripe()
        email = caller.claims.get("email")
        link = await stripe.open_checkout(
            Purchase(
                user_id=caller.require_user(),
                email=email if isinstance(email, str) and email else None,
                tier=body.tier,
                success_url=self._frontend_url + body.success_path,
                cancel_url=self._frontend_url + body.cancel_path,
            )
        )
        return {"id": link.id, "url": link.url}

    async def open_portal(self, caller: CurrentCaller, body: PortalInput | None = None) -> Mapping[str, str]:
        stripe = self._require_stripe()
        path = (body or PortalInput()).return_path
        return {"url": await stripe.open_portal(caller.require_user(), self._frontend_url + path)}

    async def get_subscription(self, caller: CurrentCaller) -> Mapping[str, Any]:
        """The user's plan as Stripe has it; free and inactive for users who never paid."""
        self._require_stripe()
        user_id = caller.require_user()
        async with self._database.transaction_as(caller.claims) as conn:
            account = await queries.find_account(conn, user_id)
        if account is None:
            return {
                "tier": FREE,
                "status": NEVER_SUBSCRIBED,
                "current_period_start": None,
                "current_period_end": None,
                "cancel_at": None,
                "trial_end": None,
            }
        return _rendered(account)

    async def list_invoices(
        self,
        caller: CurrentCaller,
        cursor: Annotated[str | None, Query(max_length=500)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Mapping[str, Any]:
        self._require_stripe()
        user_id = caller.require_user()
        before = _read_cursor(cursor) if cursor else None
        async with self._database.transaction_as(caller.claims) as conn:
            rows = await queries.find_invoices(conn, user_id, before=before, limit=limit + 1)
        shown = rows[:limit]
        more = len(rows) > limit
        return {
            "items": [_rendered(row) for row in shown],
            "next_cursor": _cursor(shown[-1]["created_at"], shown[-1]["id"]) if more else None,
        }

    async def list_plans(self) -> Mapping[str, Any]:
        """What can be bought. A limit of null is unlimited; a price of null is not for sale by itself."""
        metrics = sorted({metric for tier in self._plans.tiers.values() for metric in tier.limits})
        items = [
            {
                "tier": name,
                "name": tier.name,
                "price_minor": tier.price_minor,
                "currency": tier.currency,
                "interval": tier.interval,
                "is_for_sale": tier.stripe_lookup_key is not None and self._stripe is not None,
                "limits": {metric: tier.limits.get(metric) for metric in metrics},
                "concurrency": tier.concurrency,
                "features": tier.features,
            }
            for name, tier in self._plans.tiers.items()
        ]
        return {"items": items, "next_cursor": None}

    def _require_stripe(self) -> StripeSide:
        if self._stripe is None:
            raise BillingDisabled("Billing is switched off.", retry_after_s=3600)
        return self._stripe


def _rendered(row: Record) -> dict[str, Any]:
    return {name: iso_millis(value) if isinstance(value, datetime) else value for name, value in dict(row).items()}


def _cursor(created_at: datetime, invoice_id: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([created_at.isoformat(), invoice_id])).decode()


def _read_cursor(cursor: str) -> tuple[datetime, str]:
    try:
        created_at, invoice_id = orjson.loads(base64.urlsafe_b64decode(cursor))
        return datetime.fromisoformat(created_at).astimezone(UTC), str(invoice_id)
    except (ValueError, TypeError, OverflowError, binascii.Error):
        raise Invalid("The cursor is not one of ours.") from None
