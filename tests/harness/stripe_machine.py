"""A state machine that drives an emulated Stripe and billing together: anything, in any order, ends in one picture."""

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from threading import Thread
from typing import Any, Final, TypeVar, cast

import asyncpg
import httpx
import orjson
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,  # pyright: ignore[reportUnknownVariableType] - its overloads are partly untyped
    rule,  # pyright: ignore[reportUnknownVariableType] - its overloads are partly untyped
)

from libs.common.database import Database, connect
from libs.common.ids import new_id
from services.billing.jobs import StripeSync
from services.billing.ports import Payments
from services.billing.stripe_payments import open_stripe
from tests.harness.billing import Billing, open_billing
from tests.harness.convergence import RULES, FragilePayments, Killed
from tests.harness.database import new_database
from tests.harness.servers import Servers
from tests.harness.services import Place, service_headers
from tests.harness.stripe_emulator import SECRET_KEY

USERS: Final = 3
WORKERS: Final = 4
TIERS: Final = {"pro_monthly": "pro", "pro_plus_monthly": "pro+", "enterprise_monthly": "enterprise"}
RANKS: Final = ["free", *TIERS.values()]
GIVING: Final = {"active", "trialing", "past_due"}
TABLES: Final = (
    "subscriptions, invoices, customers, accounts, checkouts, stripe_events, refreshes, reconciliations, drift, outbox"
)
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class StripeWorld:
    """Billing without its worker, a Stripe that delivers nothing by itself, and hands that do both as they like."""

    billing: Billing
    database: Database
    payments: Payments
    chance: random.Random
    users: list[Any] = field(default_factory=list[Any])
    undelivered: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    last_event: str | None = None
    deaths: int = 0

    async def forget(self) -> None:
        await self.billing.stripe.control("reset")
        tables = ", ".join(f"billing.{name}" for name in TABLES.split(", "))
        await self.billing.database.execute(f"TRUNCATE {tables}")
        self.users = [new_id() for _ in range(USERS)]
        self.undelivered, self.last_event = [], None
        await self.gather()
        self.undelivered = []

    async def gather(self) -> None:
        """Note what happened at Stripe since last time."""
        while True:
            after = {"ending_before": self.last_event} if self.last_event else {}
            page = await self.billing.stripe.api("GET", "events", limit="100", **after)
            if not page["data"]:
                return
            fresh = list(reversed(page["data"]))
            self.undelivered += fresh
            self.last_event = fresh[-1]["id"]

    async def do(self, method: str, path: str, **fields: str) -> None:
        """What Stripe refuses (a subscription that has ended, a charge refunded twice) did not happen."""
        try:
            await self.billing.stripe.api(method, path, **fields)
        except httpx.HTTPStatusError as refusal:
            if refusal.response.is_server_error:
                raise

    async def subscriptions(self) -> list[dict[str, Any]]:
        page = await self.billing.stripe.api("GET", "subscriptions", status="all", limit="100")
        assert not page["has_more"]
        return list(reversed(page["data"]))

    async def customers(self) -> list[str]:
        page = await self.billing.stripe.api("GET", "customers", limit="100")
        return [customer["id"] for customer in reversed(page["data"])]

    async def invoices(self) -> list[dict[str, Any]]:
        page = await self.billing.stripe.api("GET", "invoices", limit="100")
        assert not page["has_more"]
        return page["data"]

    async def buy(self, user_id: Any, tier: str) -> None:
        opened = await self.billing.checkout(user_id, tier)
        if opened.status_code == 201:
            try:
                await self.billing.stripe.complete(opened.json()["id"])
            except httpx.HTTPStatusError as refusal:
                if refusal.response.status_code != 402:  # a declined card leaves it open
                    raise
        else:
            assert opened.status_code == 409, opened.text

    async def deliver(self, share: float, copies: int) -> None:
        """Some of what waits, in disorder, perhaps more than once."""
        await self.gather()
        self.chance.shuffle(self.undelivered)
        count = round(len(self.undelivered) * share)
        sent, self.undelivered = self.undelivered[:count], self.undelivered[count:]
        for event in self.chance.sample(sent * copies, len(sent) * copies):
            payload = orjson.dumps(event)
            answer = await self.billing.post_webhook(payload, self.billing.signature(payload))
            assert answer.status_code == 200, answer.text

    async def _make_due(self) -> None:
        """All at once, and so in no order: what a worker that just died still locks may lock us crosswise."""
        while True:
            with suppress(asyncpg.DeadlockDetectedError):
                await self.billing.database.execute(
                    "UPDATE billing.refreshes SET leased_until = '-infinity', due_at = now() WHERE done < wanted"
                )
                return

    async def work(self, *, odds: float) -> None:
        """A few workers, one after the other, fetch what is due; each dies at its calls with these odds.

        Without odds all is done in the end, otherwise perhaps not.
        """
        for _ in range(WORKERS):
            await self._make_due()
            fragile = FragilePayments(self.payments, self.chance, odds=odds)
            sync = StripeSync(self.database, cast("Payments", fragile), RULES, woken=asyncio.Event())
            try:
                while await sync.run_once():
                    pass
            except Killed:
                self.deaths += 1
                continue
            return

    async def check(self) -> None:
        """Deliver and fetch what is left, and compare every row with what Stripe has, read without billing's help."""
        await self.deliver(1, 2)
        await self.work(odds=0)
        theirs = await self.subscriptions()
        ours = await self.billing.database.fetch(
            """
            SELECT id, stripe_customer_id, status, tier, cancel_at_period_end,
                extract(epoch FROM current_period_end)::bigint AS until, extract(epoch FROM ended_at)::bigint AS ended
            FROM billing.subscriptions ORDER BY id COLLATE "C"
            """
        )
        assert ours == sorted(map(_row, theirs), key=lambda row: str(row["id"]))
        await self._check_invoices()
        owners = {row["id"]: row["user_id"] for row in await self.billing.database.fetch(_OWNERS)}
        for user_id in self.users:
            mine = [one for one in theirs if owners[one["id"]] == user_id]
            await self._check_plan(user_id, mine)

    async def _check_invoices(self) -> None:
        theirs = [
            {name: invoice[name] for name in ("id", "number", "status", "amount_paid", "attempt_count")}
            for invoice in await self.invoices()
        ]
        ours = await self.billing.database.fetch(
            "SELECT id, number, status, amount_paid_minor AS amount_paid, attempt_count FROM billing.invoices"
        )
        assert sorted(ours, key=_by_id) == sorted(theirs, key=_by_id)
        told = [event["stripe_invoice_id"] for event in await self.billing.published("billing.invoice_paid.v1")]
        assert sorted(told) == sorted(invoice["id"] for invoice in theirs if invoice["status"] == "paid")

    async def _check_plan(self, user_id: Any, subscriptions: list[dict[str, Any]]) -> None:
        tiers = [str(_row(one)["tier"]) for one in subscriptions if one["status"] in GIVING]
        best = max(tiers, key=RANKS.index, default="free")
        plan = await self.billing.plan(user_id)
        assert plan["tier"] == best, (subscriptions, plan)
        told = await self.billing.published("billing.subscription_changed.v1", user_id)
        ordered = sorted(told, key=lambda event: int(event["version"]))
        assert [event["version"] for event in ordered] == list(range(1, len(told) + 1))
        assert (ordered[-1]["tier"] if ordered else "free") == best
        assert all(_said(one) != _said(other) for one, other in pairwise(ordered))


_OWNERS: Final = "SELECT id, user_id FROM billing.subscriptions"


def _by_id(row: dict[str, Any]) -> str:
    return str(row["id"])


def _said(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name != "version"}


def _row(subscription: dict[str, Any]) -> dict[str, Any]:
    """A subscription as our table must have it."""
    (item,) = subscription["items"]["data"]
    return {
        "id": subscription["id"],
        "stripe_customer_id": subscription["customer"],
        "status": subscription["status"],
        "tier": TIERS[item["price"]["lookup_key"]],
        "cancel_at_period_end": subscription["cancel_at_period_end"],
        "until": item["current_period_end"],
        "ended": subscription["ended_at"],
    }


class StripeMachine(RuleBasedStateMachine):
    """Users buy, change, cancel, fail to pay and are refunded; events come late, twice, or after their successors."""

    def __init__(self, runner: "Runner", world: StripeWorld) -> None:
        super().__init__()
        self._run = runner.run
        self._world = world
        self._run(world.forget())

    @initialize(tiers=st.lists(st.sampled_from(list(TIERS.values())), min_size=USERS, max_size=USERS))
    def all_buy(self, tiers: list[str]) -> None:
        for user_id, tier in zip(self._world.users, tiers, strict=True):
            self._run(self._world.buy(user_id, tier))

    @rule(user=st.integers(0, USERS - 1), tier=st.sampled_from(list(TIERS.values())))
    def buy(self, user: int, tier: str) -> None:
        self._run(self._world.buy(self._world.users[user], tier))

    @rule(number=st.integers(0, 9), key=st.sampled_from(list(TIERS)))
    def switch(self, number: int, key: str) -> None:
        async def act(subscription: dict[str, Any]) -> None:
            (price,) = (await self._world.billing.stripe.api("GET", "prices", **{"lookup_keys[0]": key}))["data"]
            item = subscription["items"]["data"][0]["id"]
            path = f"subscriptions/{subscription['id']}"
            await self._world.do("POST", path, **{"items[0][id]": item, "items[0][price]": price["id"]})

        self._with_subscription(number, act)

    @rule(number=st.integers(0, 9), ends=st.booleans())
    def end_with_the_period(self, number: int, *, ends: bool) -> None:
        flag = str(ends).lower()
        self._with_subscription(
            number, lambda one: self._world.do("POST", f"subscriptions/{one['id']}", cancel_at_period_end=flag)
        )

    @rule(number=st.integers(0, 9))
    def cancel(self, number: int) -> None:
        self._with_subscription(number, lambda one: self._world.do("DELETE", f"subscriptions/{one['id']}"))

    @rule(number=st.integers(0, 9))
    def pause(self, number: int) -> None:
        self._with_subscription(
            number, lambda one: self._world.do("POST", f"subscriptions/{one['id']}/pause", type="subscription")
        )

    @rule(number=st.integers(0, 9))
    def resume(self, number: int) -> None:
        self._with_subscription(number, lambda one: self._world.do("POST", f"subscriptions/{one['id']}/resume"))

    @rule(number=st.integers(0, 9))
    def refund(self, number: int) -> None:
        async def act() -> None:
            charges = (await self._world.billing.stripe.api("GET", "charges", limit="100"))["data"]
            if charges:
                await self._world.do("POST", "refunds", charge=charges[number % len(charges)]["id"])

        self._run(act())

    @rule(number=st.integers(0, 9))
    def delete_the_customer(self, number: int) -> None:
        async def act() -> None:
            customers = await self._world.customers()
            if customers:
                await self._world.do("DELETE", f"customers/{customers[number % len(customers)]}")

        self._run(act())

    @rule(days=st.sampled_from([1, 4, 32]), outcome=st.sampled_from(["succeed", "card_declined"]))
    def time_passes(self, days: int, outcome: str) -> None:
        async def act() -> None:
            outcomes = {"customer": "*", "outcomes": [outcome]}
            await self._world.billing.stripe.control("outcomes", **outcomes)
            await self._world.billing.stripe.control("clock/advance", days=days)

        self._run(act())

    @rule(share=st.floats(0, 1), copies=st.integers(1, 3))
    def deliver(self, share: float, copies: int) -> None:
        self._run(self._world.deliver(share, copies))

    @rule(share=st.floats(0.3, 1), odds=st.sampled_from([0.02, 0.1, 0.3]))
    def deliver_and_work(self, share: float, odds: float) -> None:
        self._run(self._world.deliver(share, 1))
        self._run(self._world.work(odds=odds))

    @rule(odds=st.sampled_from([0.0, 0.2]))
    def work(self, odds: float) -> None:
        self._run(self._world.work(odds=odds))

    @rule()
    def replay(self) -> None:
        """An operator has events of all kinds worked again, in the middle of it all."""

        async def act() -> None:
            answer = await self._world.billing.client.post(
                "/internal/admin/webhook-events/replay", json={}, headers=service_headers("billing")
            )
            assert answer.status_code == 202, answer.text

        self._run(act())

    def teardown(self) -> None:
        self._run(self._world.check())

    def _with_subscription(self, number: int, act: Callable[[dict[str, Any]], Awaitable[None]]) -> None:
        async def find_and_act() -> None:
            found = await self._world.subscriptions()
            if found:
                await act(found[number % len(found)])

        self._run(find_and_act())


def machine_in(runner: "Runner", world: StripeWorld) -> type[StripeMachine]:
    class Machine(StripeMachine):
        def __init__(self) -> None:
            super().__init__(runner, world)

    return Machine


class Runner:
    """An event loop in a thread of its own, for a machine that knows of none."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=120)


@contextmanager
def a_runner() -> Generator[Runner, None, None]:
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield Runner(loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@asynccontextmanager
async def a_stripe_world(servers: Servers, vhost: str, state: Path, seed: int) -> AsyncGenerator[StripeWorld, None]:
    async with new_database(servers) as rows:
        place = Place(database=rows, vhost=vhost, redis_number=0)
        async with (
            open_billing(place, state, delivers=False, mode="api") as billing,
            connect(rows.url("venture_billing"), application_name="test") as database,
            open_stripe(SECRET_KEY, api_base=billing.stripe.url, calls_per_s=1_000) as payments,
        ):
            chance = random.Random(seed)  # noqa: S311 - a schedule to repeat
            yield StripeWorld(billing=billing, database=database, payments=payments, chance=chance)
        await place.delete_queues()


@contextmanager
def a_machine(
    servers: Servers, vhost: str, state: Path, *, seed: int
) -> Generator[tuple[Runner, StripeWorld], None, None]:
    with a_runner() as runner:
        opening = a_stripe_world(servers, vhost, state, seed)
        world = runner.run(opening.__aenter__())
        try:
            yield runner, world
        finally:
            runner.run(opening.__aexit__(None, None, None))
