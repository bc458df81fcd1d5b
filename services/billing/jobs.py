"""Billing's background work at Stripe, in short transactions round each call: killed anywhere, it finishes later."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final
from uuid import UUID

import structlog

from libs.common.database import Connection, Database, DatabaseUnavailable
from libs.common.errors import VentureError
from libs.common.waiting import woken
from services.billing import erasure_queries, operations, queries, usage_operations, work_queries
from services.billing.domain import Rules
from services.billing.ports import Payments
from services.billing.work_queries import Lease

log = structlog.get_logger(__name__)

BATCH_SIZE: Final = 16
CONCURRENCY: Final = 16
"""Calls to Stripe under way at once, in one process; Stripe allows 25 a second in sandboxes, 100 in live mode."""
POLL_INTERVAL_S: Final = 1.0
REVIEW_INTERVAL_S: Final = 5.0


class StripeSync:
    """Fetches what events point at, and erases deleted users. `woken` makes the next round come at once."""

    def __init__(self, database: Database, payments: Payments, rules: Rules, *, woken: asyncio.Event) -> None:
        self._database = database
        self._payments = payments
        self._rules = rules
        self._woken = woken

    async def run(self) -> None:
        """Keep up to CONCURRENCY pieces of work under way; a slow one holds up none but itself."""
        under_way: set[asyncio.Task[None]] = set()
        async with asyncio.TaskGroup() as group:
            while True:
                self._woken.clear()
                free = CONCURRENCY - len(under_way)
                try:
                    works = await self._lease(limit=free)
                except DatabaseUnavailable:
                    await self._database.wait_until_up()
                    continue
                under_way.update(group.create_task(work) for work in works)
                if len(under_way) >= CONCURRENCY:
                    await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                elif len(works) < free:
                    await woken(self._woken, within_s=POLL_INTERVAL_S)
                under_way = {task for task in under_way if not task.done()}

    async def run_once(self) -> int:
        """Work on what is due now; return how much that was. What fails is given back with a pause and its reason."""
        works = await self._lease(limit=BATCH_SIZE)
        await asyncio.gather(*works)
        return len(works)

    async def _lease(self, *, limit: int) -> list[Coroutine[Any, Any, None]]:
        async with self._database.transaction() as conn:
            leases = await work_queries.lease_refreshes(conn, limit=limit)
            users = await erasure_queries.lease_erasures(conn, limit=limit - len(leases))
        return [*map(self._refresh, leases), *map(self._erase, users)]

    async def refresh_now(self, object_id: str) -> None:
        """Fetch and store one object, as if an event had just asked for it. What fails stays due.

        Whoever has the object under a lease at this moment does it instead.
        """
        async with self._database.transaction() as conn:
            await work_queries.request_refresh(conn, object_id)
            lease = await work_queries.lease_refresh(conn, object_id)
        if lease is not None:
            await self._refresh(lease)

    async def _refresh(self, lease: Lease) -> None:
        try:
            await self._fetch_and_store(lease)
        except asyncio.CancelledError:
            # Stopped in order: the process that comes next need not wait until the lease runs out.
            with suppress(DatabaseUnavailable):
                async with self._database.transaction() as conn:
                    await work_queries.postpone_refresh(conn, lease, error="stopped")
            raise
        except Exception as error:  # noqa: BLE001 - an edge: whatever went wrong, the object stays due and says why
            reason = describe(error)
            log.warning("stripe_refresh_failed", object_id=lease.object_id, error=reason)
            await self._give_back(lambda conn: work_queries.postpone_refresh(conn, lease, error=reason))

    async def _fetch_and_store(self, lease: Lease) -> None:
        kind = lease.object_id.partition("_")[0]
        match kind:
            case "sub":
                subscription = await self._payments.fetch_subscription(lease.object_id)
                async with self._database.transaction() as conn:
                    await operations.store_subscription(conn, lease, subscription, rules=self._rules)
            case "in":
                invoice = await self._payments.fetch_invoice(lease.object_id)
                async with self._database.transaction() as conn:
                    await operations.store_invoice(conn, lease, invoice)
            case "cs":
                session = await self._payments.fetch_checkout(lease.object_id)
                async with self._database.transaction() as conn:
                    await operations.store_checkout(conn, lease, session, rules=self._rules)
            case "cus":
                await self._refresh_customer(lease)
            case "evt":  # of a meter: what happened is in the event, and only there
                errors = await self._payments.fetch_usage_errors(lease.object_id)
                async with self._database.transaction() as conn:
                    await usage_operations.refuse_usage(conn, lease, errors)
            case _:
                raise ValueError(f"no way to fetch an object of kind {kind}")

    async def _refresh_customer(self, lease: Lease) -> None:
        customer = await self._payments.fetch_customer(lease.object_id)
        found: Sequence[str] = ()
        if customer is not None:
            found = await self._payments.find_subscription_ids(lease.object_id)
        async with self._database.transaction() as conn:
            await operations.store_customer(conn, lease, customer, subscription_ids=found, rules=self._rules)

    async def _erase(self, user_id: UUID) -> None:
        try:
            await self._erase_at_stripe(user_id)
            async with self._database.transaction() as conn:
                await operations.finish_erasure(conn, user_id)
        except Exception as error:  # noqa: BLE001 - an edge: the wish stays due and says why
            reason = describe(error)
            log.warning("stripe_erasure_failed", error=reason)
            await self._give_back(lambda conn: erasure_queries.postpone_erasure(conn, user_id, error=reason))

    async def _erase_at_stripe(self, user_id: UUID) -> None:
        for customer_id in await self._customers_to_erase(user_id):
            for subscription_id in await self._payments.find_subscription_ids(customer_id):
                await self._payments.cancel_subscription(subscription_id)
            await self._payments.delete_customer(customer_id)

    async def _customers_to_erase(self, user_id: UUID) -> list[str]:
        """All of the user's customers, also one that a checkout was just making; saved before any is deleted."""
        async with self._database.transaction() as conn:
            known = set(await erasure_queries.get_erasure_customers(conn, user_id))
            known.update(await erasure_queries.find_customers_of_user(conn, user_id))
            intent = await queries.find_customer(conn, user_id)
        if intent is not None and intent["stripe_customer_id"] is None:
            # The same key as the checkout's: either finds the customer that the other made.
            known.add(
                await self._payments.create_customer(
                    user_id=user_id, email=intent["email"], idempotency_key=intent["idempotency_key"]
                )
            )
        found = await self._payments.find_customer(user_id)
        known.update([found] if found is not None else [])
        async with self._database.transaction() as conn:
            await operations.save_erasure_customers(conn, user_id, sorted(known))
        return sorted(known)

    async def _give_back(self, postpone: Callable[[Connection], Awaitable[None]]) -> None:
        """End a lease as soon as the database takes it, instead of letting the work wait until the lease runs out."""
        while True:
            try:
                async with self._database.transaction() as conn:
                    await postpone(conn)
            except DatabaseUnavailable:
                await self._database.wait_until_up()
            else:
                return


class Reviewer:
    """Decides plans again whose grace or subscription has ended by the database's clock; needs no word from Stripe."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self._database = database
        self._rules = rules

    async def run(self) -> None:
        while True:
            try:
                reviewed = await self.run_once()
            except DatabaseUnavailable:
                await self._database.wait_until_up()
                continue
            if reviewed < BATCH_SIZE:
                await asyncio.sleep(REVIEW_INTERVAL_S)

    async def run_once(self) -> int:
        async with self._database.transaction() as conn:
            users = await queries.find_accounts_to_review(conn, limit=BATCH_SIZE)
        for user_id in users:
            async with self._database.transaction() as conn:
                await operations.review_account(conn, user_id, rules=self._rules)
        return len(users)


def describe(error: Exception) -> str:
    """For `last_error` and the log."""
    # Only a meant error's text was written to be shown; another's may repeat data.
    return f"{type(error).__name__}: {error.detail}"[:500] if isinstance(error, VentureError) else type(error).__name__
