"""HTTP in: what the gateway asks for on behalf of a user. Stripe's own deliveries come in by intake.py."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import AfterValidator, Field

from libs.common.clock import iso_millis
from libs.common.database import Database, Record
from libs.common.http import CurrentCaller
from libs.common.inputs import Input
from libs.common.plans import Plans
from services.billing import queries, sale_queries
from services.billing.domain import BillingDisabled, CheckoutLink, EffectivePlan, Purchase, StripePrice, next_change
from services.billing.paging import cursor_after, read_cursor

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
    """What needs Stripe: absent without a key."""

    open_checkout: Callable[[Purchase], Awaitable[CheckoutLink]]
    open_portal: Callable[[UUID, str], Awaitable[str]]
    prices: Callable[[], Awaitable[Mapping[str, StripePrice]]]


class Routes:
    def __init__(self, database: Database, plans: Plans, *, frontend_url: str, stripe: StripeSide | None) -> None:
        self._database = database
        self._plans = plans
        self._frontend_url = frontend_url
        self._stripe = stripe

    def router(self) -> APIRouter:
        router = APIRouter(tags=["billing"])
        router.add_api_route("/internal/checkout", self.open_checkout, methods=["POST"], status_code=201)
        router.add_api_route("/internal/portal", self.open_portal, methods=["POST"])
        router.add_api_route("/internal/subscription", self.get_subscription, methods=["GET"])
        router.add_api_route("/internal/invoices", self.list_invoices, methods=["GET"])
        router.add_api_route("/internal/plans", self.list_plans, methods=["GET"])
        return router

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
        plan = EffectivePlan(**dict(account)) if account is not None else EffectivePlan()
        coming = next_change(plan)
        return {
            "tier": plan.tier,
            "status": plan.status,
            "current_period_start": _shown(plan.current_period_start),
            "current_period_end": _shown(plan.current_period_end),
            "cancel_at": _shown(plan.cancel_at),
            "trial_end": _shown(plan.trial_end),
            "next": {"what": coming.what, "at": iso_millis(coming.at)} if coming is not None else None,
        }

    async def list_invoices(
        self,
        caller: CurrentCaller,
        cursor: Annotated[str | None, Query(max_length=500)] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
    ) -> Mapping[str, Any]:
        self._require_stripe()
        user_id = caller.require_user()
        before = read_cursor(cursor)
        async with self._database.transaction_as(caller.claims) as conn:
            rows = await sale_queries.find_invoices(conn, user_id, before=before, limit=limit + 1)
        shown = rows[:limit]
        more = len(rows) > limit
        return {
            "items": [_rendered(row) for row in shown],
            "next_cursor": cursor_after(shown[-1]["created_at"], shown[-1]["id"]) if more else None,
        }

    async def list_plans(self) -> Mapping[str, Any]:
        """What can be bought, at Stripe's prices while it answers and at the configured ones otherwise.

        A limit of null is unlimited; a price of null is not for sale by itself.
        """
        prices: Mapping[str, StripePrice] = await self._stripe.prices() if self._stripe is not None else {}
        metrics = sorted({metric for tier in self._plans.tiers.values() for metric in tier.limits})
        items = [
            {
                "tier": name,
                "name": tier.name,
                "price_minor": tier.price_minor,
                "currency": tier.currency,
                "interval": tier.interval,
                **_charged(prices.get(tier.stripe_lookup_key or "")),
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
    return {name: _shown(value) for name, value in dict(row).items()}


def _charged(price: StripePrice | None) -> Mapping[str, Any]:
    if price is None:
        return {}
    return {"price_minor": price.amount_minor, "currency": price.currency, "interval": price.interval}


def _shown(value: Any) -> Any:
    return iso_millis(value) if isinstance(value, datetime) else value
