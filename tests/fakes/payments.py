"""A payment provider that keeps everything in memory."""

# ruff: noqa: ARG002 - the protocol says what is passed, the fake needs less

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar
from uuid import UUID

from services.billing.domain import (
    CustomerGone,
    Page,
    PaymentsUnavailable,
    Price,
    StripeCheckout,
    StripeCustomer,
    StripeInvoice,
    StripePrice,
    StripeSubscription,
    SubscriptionStatus,
    UsageErrors,
    UsageReport,
)

NOW: Final = datetime(2026, 11, 23, tzinfo=UTC)
ListedT = TypeVar("ListedT", StripeCustomer, StripeSubscription, StripeInvoice)
LOOKUP_KEYS: Final = ("pro_monthly", "pro_plus_monthly", "enterprise_monthly")


@dataclass(slots=True, kw_only=True)
class FakePayments:
    """Implements `Payments`. What is in `failures` is raised by the next calls, one each."""

    customers: dict[str, StripeCustomer] = field(default_factory=dict[str, StripeCustomer])
    sessions: dict[str, StripeCheckout] = field(default_factory=dict[str, StripeCheckout])
    subscriptions: dict[str, StripeSubscription] = field(default_factory=dict[str, StripeSubscription])
    invoices: dict[str, StripeInvoice] = field(default_factory=dict[str, StripeInvoice])
    meters: set[str] = field(default_factory=lambda: {"tokens_used"})
    usage: dict[str, UsageReport] = field(default_factory=dict[str, UsageReport])
    usage_errors: dict[str, UsageErrors] = field(default_factory=dict[str, UsageErrors])
    failures: list[Exception] = field(default_factory=list[Exception])
    calls: list[str] = field(default_factory=list[str])
    _keys: dict[str, str] = field(default_factory=dict[str, str])
    _prices: dict[str, str] = field(default_factory=dict[str, str])
    _made: int = 0

    def _called(self, name: str) -> None:
        self.calls.append(name)
        if self.failures:
            raise self.failures.pop(0)

    def _new(self, prefix: str) -> str:
        self._made += 1
        return f"{prefix}_{self._made}"

    async def create_customer(self, *, user_id: UUID, email: str | None, idempotency_key: str) -> str:
        self._called("create_customer")
        if idempotency_key not in self._keys:
            customer_id = self._keys[idempotency_key] = self._new("cus")
            self.customers[customer_id] = StripeCustomer(id=customer_id, claimed_user_id=user_id)
        return self._keys[idempotency_key]

    async def find_customer(self, user_id: UUID) -> str | None:
        self._called("find_customer")
        return next((one.id for one in self.customers.values() if one.claimed_user_id == user_id), None)

    async def fetch_customer(self, customer_id: str) -> StripeCustomer | None:
        self._called("fetch_customer")
        return self.customers.get(customer_id)

    async def delete_customer(self, customer_id: str) -> None:
        self._called("delete_customer")
        self.customers.pop(customer_id, None)
        for subscription in list(self.subscriptions.values()):
            if subscription.stripe_customer_id == customer_id:
                self._cancel(subscription)

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
        self._called("create_checkout")
        if lookup_key not in LOOKUP_KEYS:
            raise PaymentsUnavailable(f"no price {lookup_key}")
        if customer_id not in self.customers:
            raise CustomerGone("no such customer")
        if idempotency_key not in self._keys:
            session_id = self._keys[idempotency_key] = self._new("cs_test")
            self._prices[session_id] = lookup_key
            self.sessions[session_id] = StripeCheckout(
                id=session_id,
                status="open",
                url=f"https://pay.example/{session_id}",
                stripe_customer_id=customer_id,
                stripe_subscription_id=None,
                claimed_user_id=user_id,
            )
        return self.sessions[self._keys[idempotency_key]]

    async def fetch_checkout(self, session_id: str) -> StripeCheckout | None:
        self._called("fetch_checkout")
        return self.sessions.get(session_id)

    async def end_checkout(self, session_id: str) -> StripeCheckout | None:
        self._called("end_checkout")
        session = self.sessions.get(session_id)
        if session is not None and session.status == "open":
            session = self.sessions[session_id] = replace(session, status="expired", url=None)
        return session

    async def create_portal(self, *, customer_id: str, return_url: str) -> str:
        self._called("create_portal")
        if customer_id not in self.customers:
            raise CustomerGone("no such customer")
        return f"https://pay.example/{self._new('bps')}"

    async def fetch_subscription(self, subscription_id: str) -> StripeSubscription | None:
        self._called("fetch_subscription")
        return self.subscriptions.get(subscription_id)

    async def find_subscription_ids(self, customer_id: str) -> Sequence[str]:
        self._called("find_subscription_ids")
        if customer_id not in self.customers:
            return []
        return [one.id for one in self.subscriptions.values() if one.stripe_customer_id == customer_id]

    async def cancel_subscription(self, subscription_id: str) -> None:
        self._called("cancel_subscription")
        subscription = self.subscriptions.get(subscription_id)
        if subscription is not None:
            self._cancel(subscription)

    async def fetch_invoice(self, invoice_id: str) -> StripeInvoice | None:
        self._called("fetch_invoice")
        return self.invoices.get(invoice_id)

    async def find_prices(self, lookup_keys: Sequence[str]) -> Sequence[StripePrice]:
        self._called("find_prices")
        return [
            StripePrice(lookup_key=key, amount_minor=2900, currency="usd", interval="month")
            for key in lookup_keys
            if key in LOOKUP_KEYS
        ]

    async def list_customers(self, *, after: str | None) -> Page[StripeCustomer]:
        self._called("list_customers")
        return self._page(list(self.customers.values()), after)

    async def list_subscriptions(self, *, after: str | None) -> Page[StripeSubscription]:
        self._called("list_subscriptions")
        return self._page(list(self.subscriptions.values()), after)

    async def list_invoices(self, *, since: datetime, after: str | None) -> Page[StripeInvoice]:
        self._called("list_invoices")
        return self._page([one for one in self.invoices.values() if one.created_at >= since], after)

    def _page(self, oldest_first: Sequence[ListedT], after: str | None) -> Page[ListedT]:
        """One object a page: whoever forgets to turn pages is found out."""
        newest_first = list(reversed(oldest_first))
        start = [one.id for one in newest_first].index(after) + 1 if after is not None else 0
        items = newest_first[start : start + 1]
        has_more = len(newest_first) > start + 1
        return Page(items=items, last_id=items[-1].id if has_more else None)

    async def report_usage(self, report: UsageReport) -> None:
        self._called("report_usage")
        if report.meter not in self.meters:  # taken, and complained of afterwards
            self.usage_errors[self._new("evt")] = UsageErrors(codes={report.identifier: "no_meter"}, count=1)
            return
        self.usage.setdefault(report.identifier, report)

    async def usage_total(self, *, meter: str, customer_id: str, start: datetime, end: datetime) -> int | None:
        self._called("usage_total")
        if meter not in self.meters or customer_id not in self.customers:
            return None
        return sum(
            one.value
            for one in self.usage.values()
            if (one.meter, one.stripe_customer_id) == (meter, customer_id) and start <= one.used_at < end
        )

    async def fetch_usage_errors(self, event_id: str) -> UsageErrors:
        self._called("fetch_usage_errors")
        return self.usage_errors[event_id]

    def _cancel(self, subscription: StripeSubscription) -> None:
        if subscription.status is not SubscriptionStatus.CANCELED:
            self.subscriptions[subscription.id] = replace(
                subscription, status=SubscriptionStatus.CANCELED, canceled_at=NOW, ended_at=NOW
            )

    def complete(self, session_id: str) -> tuple[str, str]:
        """Pay as at the hosted page; return the subscription's and the invoice's ids."""
        session = self.sessions[session_id]
        customer_id = session.stripe_customer_id or ""
        subscription_id, invoice_id = self._new("sub"), self._new("in")
        until = NOW + timedelta(days=30)
        self.sessions[session_id] = replace(
            session, status="complete", url=None, stripe_subscription_id=subscription_id
        )
        self.subscriptions[subscription_id] = StripeSubscription(
            id=subscription_id,
            stripe_customer_id=customer_id,
            claimed_user_id=session.claimed_user_id,
            status=SubscriptionStatus.ACTIVE,
            prices=[Price(id="price_1", lookup_key=self._prices[session_id])],
            current_period_start=NOW,
            current_period_end=until,
            cancel_at=None,
            cancel_at_period_end=False,
            canceled_at=None,
            ended_at=None,
            trial_end=None,
            past_due_since=None,
            created_at=NOW,
        )
        self.invoices[invoice_id] = StripeInvoice(
            id=invoice_id,
            stripe_customer_id=customer_id,
            stripe_subscription_id=subscription_id,
            claimed_user_id=session.claimed_user_id,
            number="FAKE-1",
            status="paid",
            currency="usd",
            amount_due_minor=2900,
            amount_paid_minor=2900,
            attempt_count=1,
            next_attempt_at=None,
            hosted_url=None,
            period_start=NOW,
            period_end=until,
            paid_at=NOW,
            created_at=NOW,
        )
        return subscription_id, invoice_id
