"""What Stripe charges for each plan, remembered for some minutes: a page of prices must not cost a call each."""

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from libs.common.plans import Plans
from services.billing.domain import PaymentsRefused, PaymentsUnavailable, StripePrice
from services.billing.ports import Payments

log = structlog.get_logger(__name__)

FRESH_FOR_S: Final = 300.0
RETRY_AFTER_S: Final = 15.0
PATIENCE_S: Final = 2.0


class PriceList:
    """One call at a time refreshes the list; while Stripe is away the last known one, or an empty one, is given."""

    def __init__(self, payments: Payments, plans: Plans) -> None:
        self._payments = payments
        self._keys = [tier.stripe_lookup_key for tier in plans.tiers.values() if tier.stripe_lookup_key]
        self._prices: Mapping[str, StripePrice] = {}
        self._stale_at = 0.0
        self._refreshing = asyncio.Lock()

    async def current(self) -> Mapping[str, StripePrice]:
        async with self._refreshing:
            now = asyncio.get_running_loop().time()
            if now >= self._stale_at:
                self._stale_at = now + await self._refresh()
        return self._prices

    async def _refresh(self) -> float:
        """How long what is known now may stand."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                found = await self._payments.find_prices(self._keys)
        except (PaymentsUnavailable, PaymentsRefused, TimeoutError) as error:
            log.warning("prices_not_refreshed", error=type(error).__name__)
            return RETRY_AFTER_S
        self._prices = {price.lookup_key: price for price in found}
        return FRESH_FOR_S
