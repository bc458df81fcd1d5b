"""Many lives at once, their events shuffled, repeated and interleaved with kills: what do the tables come to?"""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, Final, cast

from libs.common.database import Database
from libs.common.plans import load_plans
from services.billing import operations
from services.billing.domain import Rules, effective_plan
from services.billing.jobs import StripeSync
from services.billing.ports import Payments
from services.billing.queries import find_subscriptions
from services.billing.webhook import WebhookEvent
from tests.fakes.payments import NOW, FakePayments
from tests.harness.database import TestDatabase
from tests.harness.lives import Lives, expected_rows

RULES: Final = Rules(plans=load_plans(), grace=timedelta(days=7))
_COPIES: Final = 2
_GROUP: Final = 64


class Killed(BaseException):
    """As SIGKILL: nothing of ours may catch it."""


class FragilePayments:
    """Payments under which the worker dies at random, before a call or after it."""

    def __init__(self, payments: Payments, chance: random.Random, *, odds: float) -> None:
        self._payments = payments
        self._chance = chance
        self._odds = odds
        self.deaths = 0

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self._payments, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            self._die_maybe()
            result = await method(*args, **kwargs)
            self._die_maybe()
            return result

        return call

    def _die_maybe(self) -> None:
        if self._chance.random() < self._odds:
            self.deaths += 1
            raise Killed


async def converge(database: Database, rows: TestDatabase, *, lives: int, seed: int) -> int:
    """Live them all and compare; return how often a worker was killed on the way."""
    chance = random.Random(seed)  # noqa: S311 - a schedule to repeat
    payments = FakePayments()
    world = Lives(payments, chance)
    lived = [world.begin(number) for number in range(lives)]
    fragile = FragilePayments(payments, chance, odds=0.01)
    waiting: list[WebhookEvent] = []
    for _ in range(4):  # Stripe's changes and our work take turns
        for life in lived:
            world.step(life)
            waiting += life.events * _COPIES
            life.events.clear()
        chance.shuffle(waiting)
        half = len(waiting) // 2
        await _deliver(database, waiting[:half])
        waiting = waiting[half:]
        await _work(database, rows, fragile, is_last=False)
    await _deliver(database, waiting)
    await _work(database, rows, fragile, is_last=True)
    expected = expected_rows(lived, payments, RULES)
    for table, wanted in expected.items():
        found = await _rows_of(rows, table)
        assert found == wanted, f"{table} differ, seed {seed}"
    await _plans_follow(database, rows)
    return fragile.deaths


async def _deliver(database: Database, events: list[WebhookEvent]) -> None:
    """In groups at the same time, as several replicas would write them."""
    groups = [events[start : start + _GROUP] for start in range(0, len(events), _GROUP)]

    async def write(group: list[WebhookEvent]) -> None:
        async with database.transaction() as conn:
            signed_at = int(await conn.fetchval("SELECT extract(epoch FROM now())"))
            await operations.record_events(conn, [(event, signed_at) for event in group])

    for start in range(0, len(groups), 4):
        await asyncio.gather(*map(write, groups[start : start + 4]))


async def _work(database: Database, rows: TestDatabase, fragile: FragilePayments, *, is_last: bool) -> None:
    """Run workers, each till it dies or finds nothing; leases of the dead run out at once."""
    while True:
        await rows.execute(
            "UPDATE billing.refreshes SET leased_until = '-infinity', due_at = now() WHERE done < wanted"
        )
        sync = StripeSync(database, cast("Payments", fragile), RULES, woken=asyncio.Event())
        try:
            while await sync.run_once():
                pass
        except Killed:
            continue
        if not is_last or await rows.fetchval("SELECT NOT EXISTS (SELECT FROM billing.refreshes WHERE done < wanted)"):
            return


async def _rows_of(rows: TestDatabase, table: str) -> list[dict[str, Any]]:
    if table == "subscriptions":
        return await rows.fetch(
            """
            SELECT id, user_id, stripe_customer_id, status, tier, price_id, cancel_at_period_end, current_period_end
            FROM billing.subscriptions ORDER BY id COLLATE "C"
            """
        )
    return await rows.fetch(
        """
        SELECT id, user_id, status, amount_paid_minor, attempt_count, paid_at FROM billing.invoices
        ORDER BY id COLLATE "C"
        """
    )


async def _plans_follow(database: Database, rows: TestDatabase) -> None:
    """Every account is what its subscriptions give, and the last word that was told of it."""
    for account in await rows.fetch("SELECT user_id, tier, status, version FROM billing.accounts"):
        async with database.transaction() as conn:
            subscriptions = await find_subscriptions(conn, account["user_id"])
        plan = effective_plan(subscriptions, now=NOW, grace=RULES.grace, plans=RULES.plans)
        assert (account["tier"], account["status"]) == (plan.tier, plan.status)
    mistold = await rows.fetch(
        """
        SELECT accounts.user_id FROM billing.accounts LEFT JOIN LATERAL (
            SELECT data FROM billing.outbox WHERE type = 'billing.subscription_changed.v1'
                AND subject = accounts.user_id::text ORDER BY (data ->> 'version')::bigint DESC LIMIT 1
        ) AS told ON true
        WHERE version > 0 AND ((told.data ->> 'version')::bigint, told.data ->> 'tier', told.data ->> 'status')
            IS DISTINCT FROM (version, tier, status)
        """
    )
    assert mistold == []
    twice = await rows.fetchval(
        """
        SELECT count(*) FROM (
            SELECT data ->> 'stripe_invoice_id' FROM billing.outbox WHERE type = 'billing.invoice_paid.v1'
            GROUP BY 1 HAVING count(*) > 1
        ) AS repeated
        """
    )
    assert twice == 0
