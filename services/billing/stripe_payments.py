"""Payments through Stripe's API, and the only file that imports its SDK.

Facts of the SDK that shape this file: a StripeClient retries nothing unless told to; a timeout of httpx bounds each
read, not the call; objects are no dicts, so they are turned into some at once; the key is never logged.
"""

import asyncio
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import httpx
import stripe

from services.billing.domain import (
    CustomerGone,
    Page,
    PaymentsRefused,
    PaymentsUnavailable,
    StripeCheckout,
    StripeCustomer,
    StripeInvoice,
    StripePrice,
    StripeSubscription,
    SubscriptionStatus,
    Unreadable,
    UsageErrors,
    UsageReport,
)
from services.billing.pacing import Gate
from services.billing.stripe_objects import (
    due_since,
    instant,
    read_checkout,
    read_customer,
    read_invoice,
    read_price,
    read_subscription,
    read_usage_errors,
)

CALL_TIMEOUT_S: Final = 10.0
CONNECT_TIMEOUT_S: Final = 3.0
MAX_RETRIES: Final = 2
MAX_AT_ONCE: Final = 20
PAGE_SIZE: Final = 100
_PAUSES_S: Final = (0.5, 1.0, 2.0)

T = TypeVar("T")
ObjectT = TypeVar("ObjectT", bound=stripe.StripeObject)


@asynccontextmanager
async def open_stripe(
    secret_key: str, *, api_base: str | None, calls_per_s: float | None = None
) -> AsyncGenerator["StripePayments", None]:
    """A client for one process; its connections are closed on leaving.

    Stripe allows 25 calls a second in sandboxes and 100 in live mode; what else uses the account needs some, too.
    """
    logging.getLogger("stripe").setLevel(logging.WARNING)  # at INFO the SDK names customers in every line
    http = stripe.HTTPXClient(timeout=httpx.Timeout(CALL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S))
    client = stripe.StripeClient(
        secret_key,
        max_network_retries=MAX_RETRIES,
        http_client=http,
        base_addresses={"api": api_base} if api_base else {},
    )
    try:
        per_s = calls_per_s or (80 if "_live_" in secret_key else 20)
        yield StripePayments(client, Gate(per_s=per_s, at_once=MAX_AT_ONCE))
    finally:
        await http.close_async()


class StripePayments:
    """Implements `Payments`."""

    def __init__(self, client: stripe.StripeClient, gate: Gate) -> None:
        self._v1 = client.v1
        self._v2 = client.v2
        self._gate = gate
        self._meters: dict[str, str] = {}

    async def create_customer(self, *, user_id: UUID, email: str | None, idempotency_key: str) -> str:
        params: stripe.params.CustomerCreateParams = {"metadata": {"user_id": str(user_id)}}
        if email is not None:
            params["email"] = email
        customer = await self._call(
            lambda: self._v1.customers.create_async(params, {"idempotency_key": idempotency_key})
        )
        return customer.id

    async def find_customer(self, user_id: UUID) -> str | None:
        found = await self._call(
            lambda: self._v1.customers.search_async({"query": f"metadata['user_id']:'{user_id}'", "limit": 1})
        )
        return found.data[0].id if found.data else None

    async def fetch_customer(self, customer_id: str) -> StripeCustomer | None:
        customer = await self._call_or_none(lambda: self._v1.customers.retrieve_async(customer_id))
        if customer is None or getattr(customer, "deleted", False):
            return None
        return read_customer(customer.to_dict())

    async def delete_customer(self, customer_id: str) -> None:
        await self._call_or_none(lambda: self._v1.customers.delete_async(customer_id))

    async def create_checkout(
        self,
        *,
        user_id: UUID,
        customer_id: str,
        lookup_key: str,
        metered_keys: Sequence[str] = (),
        success_url: str,
        cancel_url: str,
        idempotency_key: str,
    ) -> StripeCheckout:
        price_id, *metered_ids = await self._price_ids([lookup_key, *metered_keys])
        params: stripe.params.checkout.SessionCreateParams = {
            "mode": "subscription",
            "customer": customer_id,
            "client_reference_id": str(user_id),
            "line_items": [{"price": price_id, "quantity": 1}, *({"price": metered} for metered in metered_ids)],
            "success_url": success_url,
            "cancel_url": cancel_url,
            "metadata": {"user_id": str(user_id)},
            "subscription_data": {"metadata": {"user_id": str(user_id)}},
        }
        session = await self._call(
            lambda: self._v1.checkout.sessions.create_async(params, {"idempotency_key": idempotency_key})
        )
        return read_checkout(session.to_dict())

    async def fetch_checkout(self, session_id: str) -> StripeCheckout | None:
        session = await self._call_or_none(lambda: self._v1.checkout.sessions.retrieve_async(session_id))
        return read_checkout(session.to_dict()) if session is not None else None

    async def end_checkout(self, session_id: str) -> StripeCheckout | None:
        session = await self.fetch_checkout(session_id)
        if session is None or session.status != "open":
            return session
        try:
            expired = await self._call(lambda: self._v1.checkout.sessions.expire_async(session_id))
        except PaymentsRefused:  # completed between the two calls
            return await self.fetch_checkout(session_id)
        return read_checkout(expired.to_dict())

    async def create_portal(self, *, customer_id: str, return_url: str) -> str:
        session = await self._call(
            lambda: self._v1.billing_portal.sessions.create_async({"customer": customer_id, "return_url": return_url})
        )
        return session.url

    async def fetch_subscription(self, subscription_id: str) -> StripeSubscription | None:
        subscription = await self._call_or_none(lambda: self._v1.subscriptions.retrieve_async(subscription_id))
        return await self._read_subscription(subscription) if subscription is not None else None

    async def find_subscription_ids(self, customer_id: str) -> Sequence[str]:
        async def collect() -> list[str]:
            first = await self._v1.subscriptions.list_async({"customer": customer_id, "status": "all", "limit": 100})
            return [subscription.id async for subscription in first.auto_paging_iter()]

        return await self._call_or_none(collect) or []

    async def cancel_subscription(self, subscription_id: str) -> None:
        try:
            await self._call_or_none(lambda: self._v1.subscriptions.cancel_async(subscription_id))
        except PaymentsRefused:
            after = await self.fetch_subscription(subscription_id)
            if after is not None and not after.status.is_over:
                raise

    async def fetch_invoice(self, invoice_id: str) -> StripeInvoice | None:
        invoice = await self._call_or_none(lambda: self._v1.invoices.retrieve_async(invoice_id))
        return _read(read_invoice, invoice) if invoice is not None else None

    async def _price_ids(self, lookup_keys: Sequence[str]) -> list[str]:
        """In the order of the keys."""
        prices = await self._call(
            lambda: self._v1.prices.list_async({"lookup_keys": list(lookup_keys), "active": True, "limit": PAGE_SIZE})
        )
        found = {price.lookup_key: price.id for price in prices.data}
        for key in lookup_keys:
            if key not in found:
                raise PaymentsUnavailable(f"Stripe has no active price with the lookup key {key}.", retry_after_s=60)
        return [found[key] for key in lookup_keys]

    async def _past_due_since(self, subscription_id: str) -> datetime | None:
        """When the oldest open invoice became due: a fact of Stripe's, the same whenever and how often it is asked."""
        found = await self._call(
            lambda: self._v1.invoices.list_async({"subscription": subscription_id, "status": "open", "limit": 100})
        )
        return instant(min((due_since(invoice.to_dict()) for invoice in found.data), default=None))

    async def find_prices(self, lookup_keys: Sequence[str]) -> Sequence[StripePrice]:
        page = await self._call(
            lambda: self._v1.prices.list_async({"lookup_keys": list(lookup_keys), "active": True, "limit": PAGE_SIZE})
        )
        return [read_price(price.to_dict()) for price in page.data]

    async def list_customers(self, *, after: str | None) -> Page[StripeCustomer]:
        params: stripe.params.CustomerListParams = {"limit": PAGE_SIZE}
        if after is not None:
            params["starting_after"] = after
        page = await self._call(lambda: self._v1.customers.list_async(params))
        return await _page(page, _as_read(read_customer))

    async def list_subscriptions(self, *, after: str | None) -> Page[StripeSubscription]:
        params: stripe.params.SubscriptionListParams = {"limit": PAGE_SIZE, "status": "all"}
        if after is not None:
            params["starting_after"] = after
        page = await self._call(lambda: self._v1.subscriptions.list_async(params))
        return await _page(page, self._read_subscription)

    async def list_invoices(self, *, since: datetime, after: str | None) -> Page[StripeInvoice]:
        params: stripe.params.InvoiceListParams = {"limit": PAGE_SIZE, "created": {"gte": int(since.timestamp())}}
        if after is not None:
            params["starting_after"] = after
        page = await self._call(lambda: self._v1.invoices.list_async(params))
        return await _page(page, _as_read(read_invoice))

    async def report_usage(self, report: UsageReport) -> None:
        params: stripe.params.billing.MeterEventCreateParams = {
            "event_name": report.meter,
            "identifier": report.identifier,
            "timestamp": int(report.used_at.timestamp()),
            "payload": {"stripe_customer_id": report.stripe_customer_id, "value": str(report.value)},
        }
        await self._call(
            lambda: _unless_known(
                # The key is the identifier, too: Stripe's error reports name the one or the other.
                self._v1.billing.meter_events.create_async(params, {"idempotency_key": report.identifier})
            )
        )

    async def usage_total(self, *, meter: str, customer_id: str, start: datetime, end: datetime) -> int | None:
        meter_id = await self._meter_id(meter)
        if meter_id is None:
            return None
        params: stripe.params.billing.MeterListEventSummariesParams = {
            "customer": customer_id,
            "start_time": int(start.timestamp()),
            "end_time": int(end.timestamp()),
        }
        page = await self._call_or_none(lambda: self._v1.billing.meters.event_summaries.list_async(meter_id, params))
        # Stripe's sums are floats; ours are whole units, and exact far beyond any use of a month.
        return sum(round(summary.aggregated_value) for summary in page.data) if page is not None else None

    async def fetch_usage_errors(self, event_id: str) -> UsageErrors:
        event = await self._call(lambda: self._v2.core.events.retrieve_async(event_id))
        return read_usage_errors(event.to_dict())

    async def _meter_id(self, event_name: str) -> str | None:
        if event_name not in self._meters:
            page = await self._call(lambda: self._v1.billing.meters.list_async({"status": "active", "limit": 100}))
            self._meters = {meter.event_name: meter.id async for meter in page.auto_paging_iter()}
        return self._meters.get(event_name)

    async def _read_subscription(self, subscription: stripe.Subscription) -> StripeSubscription:
        is_owing = subscription.to_dict().get("status") == SubscriptionStatus.PAST_DUE
        owed_since = await self._past_due_since(subscription.id) if is_owing else None
        return _read(lambda facts: read_subscription(facts, past_due_since=owed_since), subscription)

    async def _call(self, call: Callable[[], Awaitable[T]]) -> T:
        """Run one call inside one bound, once more where Stripe only asked for patience."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                for pause_s in _PAUSES_S:
                    async with self._gate.enter():
                        try:
                            return await _translated(call)
                        except _SlowDown:
                            pass  # counts as no failure: Stripe is there, only busy with us
                    await asyncio.sleep(pause_s * random.uniform(0.75, 1.25))  # noqa: S311 - spreads, hides nothing
                async with self._gate.enter():
                    return await _translated(call)
        except TimeoutError as error:
            raise PaymentsUnavailable("Stripe did not answer in time.", retry_after_s=5) from error

    async def _call_or_none(self, call: Callable[[], Awaitable[T]]) -> T | None:
        """As `_call`, but what does not exist is None."""

        async def or_none() -> T | None:
            try:
                return await call()
            except stripe.InvalidRequestError as error:
                if error.code == "resource_missing":
                    return None
                raise

        return await self._call(or_none)


async def _unless_known(call: Awaitable[object]) -> None:
    """An identifier that Stripe knows is usage that it has: the first answer was lost."""
    try:
        await call
    except stripe.InvalidRequestError as error:
        is_known = error.code == "duplicate_meter_event" or "already exists with identifier" in str(error)
        if not is_known:
            raise


def _read(read: Callable[[Mapping[str, Any]], T], found: stripe.StripeObject) -> T:
    try:
        return read(found.to_dict())
    except (KeyError, TypeError, ValueError) as error:
        raise Unreadable("Stripe sent an object of a shape that this version does not know.") from error


def _as_read(read: Callable[[Mapping[str, Any]], T]) -> Callable[[stripe.StripeObject], Awaitable[T]]:
    async def read_one(found: stripe.StripeObject) -> T:
        return _read(read, found)

    return read_one


async def _page(found: stripe.ListObject[ObjectT], read: Callable[[ObjectT], Awaitable[T]]) -> Page[T]:
    items: list[T] = []
    unreadable: list[str] = []
    ids = [one["id"] for one in found.data]
    for object_id, one in zip(ids, found.data, strict=True):
        try:
            items.append(await read(one))
        except Unreadable:
            unreadable.append(object_id)
    return Page(items=items, unreadable=unreadable, last_id=ids[-1] if found.has_more else None)


class _SlowDown(PaymentsUnavailable):
    """429: the SDK does not repeat it."""


async def _translated(call: Callable[[], Awaitable[T]]) -> T:
    """Say what went wrong in our terms, without Stripe's own texts."""
    try:
        return await call()
    except stripe.RateLimitError as error:
        raise _SlowDown("Stripe asks us to slow down.", retry_after_s=5) from error
    except (stripe.InvalidRequestError, stripe.CardError, stripe.IdempotencyError) as error:
        if error.code == "resource_missing" and getattr(error, "param", None) == "customer":
            raise CustomerGone("Stripe does not know this customer.") from error
        if error.code == "idempotency_key_in_use":
            raise PaymentsUnavailable("Stripe is still at the same call.", retry_after_s=2) from error
        raise PaymentsRefused(f"Stripe refused the call ({error.code or type(error).__name__}).") from error
    except stripe.StripeError as error:
        # Also a key that is wrong or lacks a right: an operator mends that, and the same call then succeeds.
        raise PaymentsUnavailable(
            f"Stripe cannot be used right now ({error.code or type(error).__name__}).", retry_after_s=5
        ) from error
