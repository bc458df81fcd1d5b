"""Work killed before or after any of its calls finishes on the next run, with the same outcome as if it never had."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from libs.common.database import Database, connect
from libs.common.ids import new_id
from libs.common.plans import load_plans
from services.billing import operations, work_queries
from services.billing.checkout import Desk
from services.billing.domain import CheckoutLink, Purchase, Rules
from services.billing.jobs import StripeSync
from services.billing.ports import Payments
from services.billing.reconcile import Reconciler
from tests.fakes.payments import FakePayments
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually

RULES = Rules(plans=load_plans(), grace=timedelta(days=7))


class Killed(BaseException):
    """As SIGKILL: nothing of ours may catch it."""


class Mortal:
    """Payments under which the process dies at the n-th call, before the call took effect or after."""

    def __init__(self, payments: FakePayments, *, dies_at: int, after: bool) -> None:
        self._payments = payments
        self._left = dies_at
        self._after = after

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._payments, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0 and not self._after:
                raise Killed
            result = await method(*args, **kwargs)
            if self._left == 0:
                raise Killed
            return result

        return call


@pytest.fixture
async def database(test_database: TestDatabase) -> AsyncGenerator[Database, None]:
    async with connect(test_database.url("venture_billing"), application_name="test") as opened:
        yield opened


async def run_until_killed(work: Callable[[Payments], Awaitable[Any]], payments: FakePayments, **how: Any) -> bool:
    """Say whether the work was killed on its way."""
    try:
        await work(cast("Payments", Mortal(payments, **how)))
    except Killed:
        return True
    return False


async def outlive_leases(test_database: TestDatabase) -> None:
    await test_database.execute("UPDATE billing.refreshes SET leased_until = '-infinity'")
    await test_database.execute("UPDATE billing.reconciliations SET leased_until = '-infinity'")
    await test_database.execute("UPDATE billing.erasures SET due_at = now()")


def a_purchase(user_id: UUID) -> Purchase:
    return Purchase(
        user_id=user_id, email=None, tier="pro", success_url="https://a.example/", cancel_url="https://a.example/"
    )


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("dies_at", range(1, 3))
async def test_a_killed_checkout_makes_no_second_customer_or_session(
    database: Database, user_id: UUID, dies_at: int, *, after: bool
) -> None:
    payments = FakePayments()

    async def check_out(provider: Payments) -> CheckoutLink:
        return await Desk(database, provider, RULES).open_checkout(a_purchase(user_id))

    assert await run_until_killed(check_out, payments, dies_at=dies_at, after=after)
    await check_out(payments)
    assert len(payments.customers) == 1
    assert len(payments.sessions) == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_killed_refresh_is_done_by_the_next_run(
    database: Database, test_database: TestDatabase, user_id: UUID, *, after: bool
) -> None:
    payments = FakePayments()
    link = await Desk(database, payments, RULES).open_checkout(a_purchase(user_id))
    subscription_id, _ = payments.complete(link.id)
    async with database.transaction() as conn:
        await work_queries.request_refresh(conn, subscription_id)

    async def refresh(provider: Payments) -> None:
        await a_sync(database, provider).run_once()

    assert await run_until_killed(refresh, payments, dies_at=1, after=after)
    assert await test_database.fetchval("SELECT count(*) FROM billing.subscriptions") == 0
    await outlive_leases(test_database)
    await refresh(payments)
    (account,) = await test_database.fetch("SELECT tier, version FROM billing.accounts")
    assert account == {"tier": "pro", "version": 1}
    assert await test_database.fetchval("SELECT count(*) FROM billing.outbox") == 1


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("dies_at", range(1, 5))
async def test_a_killed_erasure_is_finished_by_the_next_run(
    database: Database, test_database: TestDatabase, user_id: UUID, dies_at: int, *, after: bool
) -> None:
    payments = FakePayments()
    link = await Desk(database, payments, RULES).open_checkout(a_purchase(user_id))
    subscription_id, _ = payments.complete(link.id)
    async with database.transaction() as conn:
        await operations.request_erasure(conn, user_id=user_id, profile_customer_id=None, has_payments=True)

    async def erase(provider: Payments) -> None:
        await a_sync(database, provider).run_once()

    assert await run_until_killed(erase, payments, dies_at=dies_at, after=after)
    await outlive_leases(test_database)
    await erase(payments)
    assert payments.customers == {}
    assert payments.subscriptions[subscription_id].status == "canceled"
    assert await test_database.fetchval("SELECT count(*) FROM billing.customers") == 0
    assert await test_database.fetchval("SELECT count(*) FROM billing.outbox WHERE type LIKE '%user_erased%'") == 1


@pytest.mark.parametrize("dies_at", [1, 3, 4, 5, 6, 8])
async def test_a_killed_comparison_is_begun_again_and_mends_all(
    database: Database, test_database: TestDatabase, user_id: UUID, dies_at: int
) -> None:
    payments = FakePayments()
    link = await Desk(database, payments, RULES).open_checkout(a_purchase(user_id))
    subscription_id, invoice_id = payments.complete(link.id)
    async with database.transaction() as conn:
        await operations.request_reconciliation(conn, run_id=new_id(), is_fixing=True)

    async def compare(provider: Payments) -> None:
        await Reconciler(database, provider, RULES, a_sync(database, provider)).run_once()

    assert await run_until_killed(compare, payments, dies_at=dies_at, after=dies_at % 2 == 0)
    await outlive_leases(test_database)
    # What the dead one was just mending is due, and done by the loop that does so every day.
    await a_sync(database, payments).run_once()
    await compare(payments)
    assert await test_database.fetchval("SELECT finished_at IS NOT NULL FROM billing.reconciliations")
    assert (
        await test_database.fetchval("SELECT id FROM billing.subscriptions WHERE status = 'active'") == subscription_id
    )
    assert await test_database.fetchval("SELECT id FROM billing.invoices WHERE is_paid_told") == invoice_id
    assert await test_database.fetchval("SELECT count(*) FROM billing.drift") == 0


async def test_a_worker_that_slept_past_its_lease_stores_nothing(
    database: Database, test_database: TestDatabase, user_id: UUID
) -> None:
    payments = FakePayments()
    link = await Desk(database, payments, RULES).open_checkout(a_purchase(user_id))
    subscription_id, _ = payments.complete(link.id)
    stale = await payments.fetch_subscription(subscription_id)
    async with database.transaction() as conn:
        await work_queries.request_refresh(conn, subscription_id)
        (old_lease,) = await work_queries.lease_refreshes(conn, limit=1)
    await outlive_leases(test_database)
    await payments.cancel_subscription(subscription_id)
    await a_sync(database, payments).run_once()
    async with database.transaction() as conn:
        await operations.store_subscription(conn, old_lease, stale, rules=RULES)
    assert await test_database.fetchval("SELECT status FROM billing.subscriptions") == "canceled"


def a_sync(database: Database, payments: Payments) -> StripeSync:
    return StripeSync(database, payments, RULES, woken=asyncio.Event())


class Silent(FakePayments):
    """Stripe does not answer."""

    def __init__(self) -> None:
        super().__init__()
        self.was_asked = asyncio.Event()

    async def fetch_subscription(self, subscription_id: str) -> Any:  # noqa: ARG002
        self.was_asked.set()
        await asyncio.Event().wait()


async def test_a_process_that_is_stopped_leaves_its_work_to_the_next_at_once(database: Database) -> None:
    payments = Silent()
    async with database.transaction() as conn:
        await work_queries.request_refresh(conn, "sub_1")
    running = asyncio.ensure_future(StripeSync(database, payments, RULES, woken=asyncio.Event()).run())
    await payments.was_asked.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running

    async def is_taken_over() -> bool:
        async with database.transaction() as conn:
            return [lease.object_id for lease in await work_queries.lease_refreshes(conn, limit=9)] == ["sub_1"]

    await eventually(is_taken_over, within_s=3)
