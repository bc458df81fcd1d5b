"""The comparison with Stripe: nightly and on demand, it reports where our tables differ, and mends it when asked to.

Read page by page, at the pace the payments adapter keeps. What differs is fetched once more before it is called drift,
because a page is older than our rows. Mending is the same refresh that an event would have asked for, so that a run
with `is_fixing` makes good any number of lost events. Profiles changed by hand, and usage that a meter counted
otherwise, are reported and never touched.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from typing import Final, TypeVar

import structlog

from libs.common.database import Connection, Database, DatabaseUnavailable
from libs.common.ids import new_id
from libs.common.waiting import woken
from services.billing import drift_queries, queries, usage_queries
from services.billing.domain import Page, Rules, StripeCustomer, Unreadable
from services.billing.drift import Drift, Facts, differences, facts_of_invoice, facts_of_subscription
from services.billing.drift_queries import Run
from services.billing.jobs import StripeSync, describe
from services.billing.ports import Payments

log = structlog.get_logger(__name__)
T = TypeVar("T")

POLL_INTERVAL_S: Final = 5.0
RETRY_PAUSE_S: Final = 30
NIGHT_HOUR: Final = 3
"""UTC."""
INVOICES_OF: Final = timedelta(days=35)
"""How far back invoices are compared, beside those we hold as open: a month and the retries of its last one."""
OUR_PAGE: Final = 100
USAGE_OF: Final = timedelta(days=34)
USAGE_SETTLES_IN: Final = timedelta(hours=1)
"""Meters count what they were sent within minutes."""


class RunLost(Exception):
    """Another worker has taken the run over."""


class Reconciler:
    """Carries out the runs that are asked for. Killed anywhere, a run is begun again by whoever takes it next."""

    def __init__(self, database: Database, payments: Payments, rules: Rules, sync: StripeSync) -> None:
        self._database = database
        self._payments = payments
        self._rules = rules
        self._sync = sync
        self.woken = asyncio.Event()

    async def run(self) -> None:
        while True:
            self.woken.clear()
            try:
                async with self._database.transaction() as conn:
                    await drift_queries.insert_nightly_run(conn, run_id=new_id(), hour=NIGHT_HOUR)
                is_done = await self.run_once()
            except DatabaseUnavailable:
                await self._database.wait_until_up()
                continue
            if not is_done:
                await woken(self.woken, within_s=POLL_INTERVAL_S)

    async def run_once(self) -> bool:
        """Carry out the next run; False if there is none. One that fails waits, with its reason, and is begun again."""
        async with self._database.transaction() as conn:
            run = await drift_queries.lease_run(conn)
        if run is None:
            return False
        try:
            counts = await Comparison(self._database, self._payments, self._rules, self._sync, run).carry_out()
        except RunLost:
            return True
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - an edge: whatever went wrong, the run is begun again and says why
            log.warning("reconciliation_failed", error=describe(error))
            async with self._database.transaction() as conn:
                await drift_queries.postpone_run(conn, run, error=describe(error), pause_s=RETRY_PAUSE_S)
            return False
        log.info("reconciled", run_id=str(run.id), **counts)
        return True


class Comparison:
    """One run, from Stripe's lists to the report."""

    def __init__(self, database: Database, payments: Payments, rules: Rules, sync: StripeSync, run: Run) -> None:
        self._database = database
        self._payments = payments
        self._rules = rules
        self._sync = sync
        self._run = run
        self._seen: set[str] = set()
        self._counts: Counter[str] = Counter(customers=0, subscriptions=0, invoices=0, usage=0, drifting=0, mended=0)

    async def carry_out(self) -> Mapping[str, int]:
        await self._compare_customers()
        await self._compare_subscriptions()
        await self._compare_invoices()
        await self._compare_what_only_we_have()
        await self._compare_usage()
        async with self._database.transaction() as conn:
            for one in await drift_queries.find_profile_drift(conn):
                await drift_queries.replace_drift(conn, self._run, one.object_id, [one])
                self._counts["drifting"] += 1
            if not await drift_queries.finish_run(conn, self._run, counts=self._counts):
                raise RunLost
        return self._counts

    async def _compare_customers(self) -> None:
        async for page in _pages(lambda after: self._payments.list_customers(after=after)):
            async with self._database.transaction() as conn:
                suspects = await self._unknown_customers(conn, page.items)
            await self._look_closer("customers", [customer.id for customer in page.items], suspects, page.unreadable)

    async def _compare_subscriptions(self) -> None:
        async for page in _pages(lambda after: self._payments.list_subscriptions(after=after)):
            theirs = {one.id: facts_of_subscription(one, self._rules.plans) for one in page.items}
            async with self._database.transaction() as conn:
                ours = await drift_queries.find_subscription_facts(conn, list(theirs))
                gone = await drift_queries.find_erased_customers(conn, [one.stripe_customer_id for one in page.items])
            kept = {one.id for one in page.items if one.stripe_customer_id not in gone}
            suspects = [it for it in kept if _differ(ours, theirs, it)]
            await self._look_closer("subscriptions", list(theirs), suspects, page.unreadable)

    async def _compare_invoices(self) -> None:
        async with self._database.transaction() as conn:
            since = await queries.get_now(conn) - INVOICES_OF
        async for page in _pages(lambda after: self._payments.list_invoices(since=since, after=after)):
            known = {one.id: one.stripe_customer_id for one in page.items if one.stripe_customer_id is not None}
            theirs = {one.id: facts_of_invoice(one) for one in page.items if one.id in known}
            async with self._database.transaction() as conn:
                ours = await drift_queries.find_invoice_facts(conn, list(theirs))
                gone = await drift_queries.find_erased_customers(conn, list(known.values()))
            suspects = [it for it in theirs if known[it] not in gone and _differ(ours, theirs, it)]
            await self._look_closer("invoices", list(theirs), suspects, page.unreadable)

    async def _compare_what_only_we_have(self) -> None:
        """Objects that Stripe did not list: deleted there, of the other mode, or invoices from before the window."""
        after = ""
        while True:
            async with self._database.transaction() as conn:
                ids = await drift_queries.find_ids_to_expect(conn, after=after, limit=OUR_PAGE)
            if not ids:
                return
            after = ids[-1]
            await self._look_closer("ours", [], [known for known in ids if known not in self._seen], ())

    async def _compare_usage(self) -> None:
        """What we reported to meters beside what they counted; the last hour is left to settle on both sides."""
        async with self._database.transaction() as conn:
            end = (await queries.get_now(conn) - USAGE_SETTLES_IN).replace(second=0, microsecond=0)
            start = end - USAGE_OF
            totals = await usage_queries.find_totals(conn, start=start, end=end)
        for total in totals:
            customer_id, meter, ours = total["stripe_customer_id"], total["meter"], total["value"]
            theirs = await self._payments.usage_total(meter=meter, customer_id=customer_id, start=start, end=end)
            object_id = f"usage:{customer_id}:{meter}"
            found = (
                [Drift(object_id=object_id, what="usage", ours=ours, theirs=theirs)]
                if theirs not in {None, ours}
                else []
            )
            self._counts["usage"] += 1
            self._counts["drifting"] += bool(found)
            async with self._database.transaction() as conn:
                await drift_queries.replace_drift(conn, self._run, object_id, found)
                if not await drift_queries.extend_run(conn, self._run, counts=self._counts):
                    raise RunLost

    async def _look_closer(
        self, kind: str, ids: Sequence[str], differing: Sequence[str], unreadable: Sequence[str]
    ) -> None:
        """Fetch what seems to differ; what still does is reported, and mended if the run is to mend."""
        suspects = [*differing, *unreadable]
        self._seen.update(ids, unreadable)
        self._counts[kind] += len(ids) + len(unreadable)
        async with self._database.transaction() as conn:
            if not await drift_queries.extend_run(conn, self._run, counts=self._counts):
                raise RunLost
            in_flight = await drift_queries.find_in_flight(conn, suspects)
        for object_id in sorted(set(suspects) - in_flight):
            found = await self._compare_one(object_id)
            if found and self._run.is_fixing:
                await self._sync.refresh_now(object_id)
                self._counts["mended"] += 1
                found = await self._compare_one(object_id)
            async with self._database.transaction() as conn:
                await drift_queries.replace_drift(conn, self._run, object_id, found)
                if not await drift_queries.extend_run(conn, self._run, counts=self._counts):
                    raise RunLost
            self._counts["drifting"] += bool(found)

    async def _compare_one(self, object_id: str) -> list[Drift]:
        try:
            return await self._compare_fetched(object_id)
        except Unreadable as unreadable:  # an operator must see it, and a newer version read it
            return [Drift(object_id=object_id, what="unreadable", ours=None, theirs=unreadable.detail)]

    async def _compare_fetched(self, object_id: str) -> list[Drift]:
        """The object as Stripe has it now beside the row as we have it after that."""
        theirs: Facts | None = None
        match object_id.partition("_")[0]:
            case "sub":
                subscription = await self._payments.fetch_subscription(object_id)
                theirs = facts_of_subscription(subscription, self._rules.plans) if subscription is not None else None
                async with self._database.transaction() as conn:
                    ours = (await drift_queries.find_subscription_facts(conn, [object_id])).get(object_id)
            case "in":
                invoice = await self._payments.fetch_invoice(object_id)
                theirs = facts_of_invoice(invoice) if invoice is not None else None
                async with self._database.transaction() as conn:
                    ours = (await drift_queries.find_invoice_facts(conn, [object_id])).get(object_id)
            case _:
                customer = await self._payments.fetch_customer(object_id)
                async with self._database.transaction() as conn:
                    ours = (await drift_queries.find_customer_owners(conn, [object_id])).get(object_id)
                    if customer is not None and await self._unknown_customers(conn, [customer]):
                        theirs = {"user_id": str(customer.claimed_user_id)}
                    elif customer is not None:
                        return []
        return differences(object_id, ours, theirs)

    async def _unknown_customers(self, conn: Connection, customers: Sequence[StripeCustomer]) -> list[str]:
        """Of these customers at Stripe, those that name a user of ours who has no customer here."""
        known = await drift_queries.find_customer_owners(conn, [customer.id for customer in customers])
        claims = {one.id: one.claimed_user_id for one in customers if one.claimed_user_id and one.id not in known}
        settled = await drift_queries.find_users_with_customer(conn, list(claims.values()))
        return [customer_id for customer_id, user_id in claims.items() if user_id not in settled]


async def _pages(fetch: Callable[[str | None], Awaitable[Page[T]]]) -> AsyncIterator[Page[T]]:
    page = await fetch(None)
    yield page
    while page.last_id is not None:
        page = await fetch(page.last_id)
        yield page


def _differ(ours: Mapping[str, Facts], theirs: Mapping[str, Facts], object_id: str) -> bool:
    return bool(differences(object_id, ours.get(object_id), theirs[object_id]))
