"""What billing needs of a payment provider; StripePayments is the real one, FakePayments the one with memory only."""

from collections.abc import Sequence
from datetime import datetime
from typing import Protocol
from uuid import UUID

from services.billing.domain import (
    Page,
    StripeCheckout,
    StripeCustomer,
    StripeInvoice,
    StripePrice,
    StripeSubscription,
    UsageErrors,
    UsageReport,
)


class Payments(Protocol):
    """Raises PaymentsUnavailable when a repetition may succeed, PaymentsRefused when it will not.

    Every call may be repeated: those that create take an idempotency key, those that end things are content with
    finding them ended. A `fetch_` returns None for what does not exist (any more).
    """

    async def create_customer(self, *, user_id: UUID, email: str | None, idempotency_key: str) -> str:
        """Make the user's customer, its metadata naming the user; return its id."""
        ...

    async def find_customer(self, user_id: UUID) -> str | None:
        """The customer whose metadata names the user; may lag a minute behind what was created."""
        ...

    async def fetch_customer(self, customer_id: str) -> StripeCustomer | None: ...

    async def delete_customer(self, customer_id: str) -> None: ...

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
        """Open a checkout of the price behind `lookup_key`, and of those charged by use beside it.

        Raises CustomerGone if the customer does not exist.
        """
        ...

    async def fetch_checkout(self, session_id: str) -> StripeCheckout | None: ...

    async def end_checkout(self, session_id: str) -> StripeCheckout | None:
        """Expire the session if it is open; return it as it then is."""
        ...

    async def create_portal(self, *, customer_id: str, return_url: str) -> str:
        """A short-lived link to the customer's portal. Whoever holds it is the customer: do not store or log it."""
        ...

    async def fetch_subscription(self, subscription_id: str) -> StripeSubscription | None: ...

    async def find_subscription_ids(self, customer_id: str) -> Sequence[str]:
        """All of the customer's subscriptions, ended ones too; none for a customer that does not exist."""
        ...

    async def cancel_subscription(self, subscription_id: str) -> None: ...

    async def fetch_invoice(self, invoice_id: str) -> StripeInvoice | None: ...

    async def find_prices(self, lookup_keys: Sequence[str]) -> Sequence[StripePrice]:
        """The active prices behind these keys; at most ten keys."""
        ...

    async def list_customers(self, *, after: str | None) -> Page[StripeCustomer]:
        """A page, newest first, beginning behind the object `after`. So are the next two."""
        ...

    async def list_subscriptions(self, *, after: str | None) -> Page[StripeSubscription]: ...

    async def list_invoices(self, *, since: datetime, after: str | None) -> Page[StripeInvoice]: ...

    async def report_usage(self, report: UsageReport) -> None:
        """Add to the meter; once per identifier, for as long as Stripe remembers it (a day at least).

        Raises PaymentsRefused for what will never be counted. Usage that cannot be counted may also be taken now and
        be reported by an event later, see `fetch_usage_errors`.
        """
        ...

    async def usage_total(self, *, meter: str, customer_id: str, start: datetime, end: datetime) -> int | None:
        """What the meter counted in `[start, end)`, whole minutes; None where there is no such meter or customer."""
        ...

    async def fetch_usage_errors(self, event_id: str) -> UsageErrors:
        """What a meter's error event is about; the event itself does not say."""
        ...
