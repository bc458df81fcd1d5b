"""The comparison with Stripe: nightly and on demand, it reports where our tables differ, and mends it when asked to.

Read page by page, at the pace the payments adapter keeps. What differs is fetched once more before it is called drift,
because a page is older than our rows. Mending is the same refresh that an event would have asked for, so that a run
with `is_fixing` makes good any number of lost events. Profiles changed by hand are reported and never touched.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Final

import structlog

from libs.common.database import Connection, Database, DatabaseUnavailable
from libs.common.errors import VentureError
from libs.common.ids import new_id
from libs.common.waiting import woken
from services.billing import drift_queries, queries
from services.billing.domain import Rules, StripeCustomer
from services.billing.drift import Drift, Facts, differences, facts_of_invoice, facts_of_subscription
from services.billing.drift_queries import Run
from services.billing.jobs import StripeSync
from services.billing.ports import Payments

log = structlog.get_logger(__name__)

POLL_INTERVAL_S: Final = 5.0
RETRY_PAUSE_S: Final = 30
NIGHT_HOUR: Final = 3
"""UTC."""
INVOICES_OF: Final = timedelta(days=35)
"""How far back invoices are compared, beside those we hold as open: a month and the retries of its last one."""
OUR_PAGE: Final = 100


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
        except VentureError as error:
            if isinstance(error, DatabaseUnavailable):
                raise
            log.warning("reconciliation_failed", error=error.code)
            async with self._database.transaction() as conn:
                await drift_queries.postpone_run(conn, run, error=error.detail, pause_s=RETRY_PAUSE_S)
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
        self._counts: Counter[str] = Counter(customers=0, subscriptions=0, invoices=0, drifting=0, mended=0)

    async def carry_out(self) -> Mapping[str, int]:
        await self._compare_customers()
        await self._compare_subscriptions()
        await self._compare_invoices()
        await self._compare_what_only_we_have()
        async with self._database.transaction() as conn:
            for one in await drift_queries.find_profile_drift(conn):
                await drift_queries.replace_drift(conn, self._run, one.object_id, [one])
                self._counts["drifting"] += 1
            if not await drift_queries.finish_run(conn, self._run, counts=self._counts):
                raise RunLost
        return self._counts

    async def _compare_customers(self) -> None:
        after: str | None = None
        while page := await self._payments.list_customers(after=after):
            after = page[-1].id
            ids = [customer.id for customer in page]
            async with self._database.transaction() as conn:
                suspects = await self._unknown_customers(conn, page)
            await self._look_closer("customers", ids, suspects)

    async def _compare_subscriptions(self) -> None:
        after: str | None = None
        while page := await self._payments.list_subscriptions(after=after):
            after = page[-1].id
            theirs = {one.id: facts_of_subscription(one, self._rules.plans) for one in page}
            async with self._database.transaction() as conn:
                ours = await drift_queries.find_subscription_facts(conn, list(theirs))
                gone = await drift_queries.find_erased_customers(conn, [one.stripe_customer_id for one in page])
            kept = {one.id for one in page if one.stripe_customer_id not in gone}
            await self._look_closer("subscriptions", list(theirs), [it for it in kept if _differ(ours, theirs, it)])

    async def _compare_invoices(self) -> None:
        async with self._database.transaction() as conn:
            since = await queries.get_now(conn) - INVOICES_OF
        after: str | None = None
        while page := await self._payments.list_invoices(since=since, after=after):
            after = page[-1].id
            theirs = {one.id: facts_of_invoice(one) for one in page if one.stripe_customer_id is not None}
            async with self._database.transaction() as conn:
                ours = await drift_queries.find_invoice_facts(conn, list(theirs))
                gone = await drift_queries.find_erased_customers(conn, [one.stripe_customer_id or "" for one in page])
            kept = {one.id for one in page if one.id in theirs and one.stripe_customer_id not in gone}
            await self._look_closer("invoices", list(theirs), [it for it in kept if _differ(ours, theirs, it)])

    async def _compare_what_only_we_have(self) -> None:
        """Objects that Stripe did not list: deleted there, of the other mode, or invoices from before the window."""
        after = ""
        while True:
            async with self._database.transaction() as conn:
                ids = await drift_queries.find_ids_to_expect(conn, after=after, limit=OUR_PAGE)
            if not ids:
                return
            after = ids[-1]
            await self._look_closer("ours", [], [known for known in ids if known not in self._seen])

    async def _look_closer(self, kind: str, ids: Sequence[str], suspects: Sequence[str]) -> None:
        """Fetch what seems to differ; what still does is reported, and mended if the run is to mend."""
        self._seen.update(ids)
        self._counts[kind] += len(ids)
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


def _differ(ours: Mapping[str, Facts], theirs: Mapping[str, Facts], object_id: str) -> bool:
    return bool(differences(object_id, ours.get(object_id), theirs[object_id]))
