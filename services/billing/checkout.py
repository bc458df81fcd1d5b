"""Work at Stripe that a user waits for: opening a checkout and the customer portal, bounded below five seconds."""

import asyncio
from typing import Final
from uuid import UUID

from libs.common.database import Database
from libs.common.plans import Tier
from services.billing import operations, queries
from services.billing.domain import (
    CheckoutIntent,
    CheckoutLink,
    CustomerGone,
    NoCustomer,
    PaymentsRefused,
    PaymentsUnavailable,
    Purchase,
    Rules,
    StripeCheckout,
    TierNotForSale,
)
from services.billing.ports import Payments

PATIENCE_S: Final = 4.0
"""No answer may take longer than 5 s; what Stripe did meanwhile is found again by its idempotency key."""
_TRIES: Final = 3
"""First the intent found, then one made afresh because that had ended, then one for a customer made afresh."""


class Desk:
    """Where users buy. Intent first, then Stripe with the saved key, then the result: safe to repeat at any point."""

    def __init__(self, database: Database, payments: Payments, rules: Rules) -> None:
        self._database = database
        self._payments = payments
        self._rules = rules

    async def open_checkout(self, purchase: Purchase) -> CheckoutLink:
        """Raises TierNotForSale, AlreadySubscribed, AccountDeleted, PaymentsUnavailable, PaymentsRefused."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._open_checkout(purchase)
        except TimeoutError as error:
            raise PaymentsUnavailable("Stripe did not answer in time; try again.", retry_after_s=5) from error

    async def open_portal(self, user_id: UUID, *, return_url: str) -> str:
        """Raises NoCustomer for users who never began a checkout."""
        async with self._database.transaction() as conn:
            customer = await queries.find_customer(conn, user_id)
        if customer is None or customer["stripe_customer_id"] is None:
            raise NoCustomer("There is no billing account yet; it is made with the first checkout.")
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._payments.create_portal(
                    customer_id=customer["stripe_customer_id"], return_url=return_url
                )
        except TimeoutError as error:
            raise PaymentsUnavailable("Stripe did not answer in time; try again.", retry_after_s=5) from error

    async def _open_checkout(self, purchase: Purchase) -> CheckoutLink:
        tier = self._rules.plans.tiers.get(purchase.tier)
        if tier is None or tier.stripe_lookup_key is None:
            raise TierNotForSale(f"The tier {purchase.tier!r} is not for sale.")
        for _ in range(_TRIES):
            async with self._database.transaction() as conn:
                intent = await operations.begin_checkout(conn, purchase)
            for session_id in intent.superseded:
                await self._require_unpaid(await self._payments.end_checkout(session_id))
            session = await self._session(intent, purchase, tier)
            if session is not None and session.url is not None:
                return CheckoutLink(id=session.id, url=session.url)
        raise PaymentsUnavailable("The checkout could not be opened; try again.", retry_after_s=5)

    async def _session(self, intent: CheckoutIntent, purchase: Purchase, tier: Tier) -> StripeCheckout | None:
        """The open session of the intent, made if need be; None if it has ended and another intent is needed."""
        if intent.session_id is not None:
            session = await self._payments.fetch_checkout(intent.session_id)
            if session is None:
                await self._save(intent, session_id=None, status="expired")
                return None
        else:
            session = await self._create(intent, purchase, tier)
            if session is None:
                return None
            await self._save(intent, session_id=session.id, status="open")
        return session if await self._require_unpaid(session) else None

    async def _create(self, intent: CheckoutIntent, purchase: Purchase, tier: Tier) -> StripeCheckout | None:
        customer_id = await self._customer(intent, purchase.user_id)
        try:
            return await self._payments.create_checkout(
                user_id=purchase.user_id,
                customer_id=customer_id,
                lookup_key=tier.stripe_lookup_key or "",
                metered_keys=[metered.stripe_lookup_key for metered in tier.metered.values()],
                success_url=purchase.success_url,
                cancel_url=purchase.cancel_url,
                idempotency_key=intent.idempotency_key,
            )
        except CustomerGone:
            async with self._database.transaction() as conn:
                await operations.save_checkout(conn, intent, session_id=None, status="refused")
                await operations.forget_customer(conn, customer_id)
            return None
        except PaymentsRefused:
            await self._save(intent, session_id=None, status="refused")
            raise

    async def _customer(self, intent: CheckoutIntent, user_id: UUID) -> str:
        if intent.stripe_customer_id is not None:
            return intent.stripe_customer_id
        customer_id = await ensure_customer(self._payments, intent, user_id)
        async with self._database.transaction() as conn:
            await operations.save_customer(conn, user_id=user_id, stripe_customer_id=customer_id)
        return customer_id

    async def _require_unpaid(self, session: StripeCheckout | None) -> bool:
        """True for an open session; one that has ended is noted, and one that was paid is the answer to the user."""
        if session is not None and session.status == "open":
            return True
        if session is not None:
            async with self._database.transaction() as conn:
                await operations.close_session(conn, session)
            if session.status == "complete":
                raise operations.already_subscribed()
        return False

    async def _save(self, intent: CheckoutIntent, *, session_id: str | None, status: str) -> None:
        async with self._database.transaction() as conn:
            await operations.save_checkout(conn, intent, session_id=session_id, status=status)


async def ensure_customer(payments: Payments, intent: CheckoutIntent, user_id: UUID) -> str:
    """The customer that the intent's key stands for, made at most once."""
    if intent.is_customer_intent_old:
        found = await payments.find_customer(user_id)
        if found is not None:
            return found
    return await payments.create_customer(
        user_id=user_id, email=intent.customer_email, idempotency_key=intent.customer_key
    )
