"""Everything that can happen to a subscription, as the service's README tells it, on Stripe's test clocks."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID

from libs.common.ids import new_id
from tests.harness.billing import PATIENCE_S, Billing, open_billing
from tests.harness.patience import eventually
from tests.harness.services import Place

README: Final = Path(__file__).parents[3] / "services" / "billing" / "README.md"
DAY_S: Final = 86_400
AT_ONCE: Final = 8
_ROW: Final = re.compile(r"^\| ([\w' ]+) \|([^|]*)\| ([\w ]+) \| `(\w+)` \|", re.MULTILINE)
TIERS: Final = {"its": "pro", "the higher": "pro+", "free": "free"}
KEPT: Final = "Stripe gives up and keeps it"


@dataclass(slots=True, kw_only=True)
class Life:
    """One user whose Stripe has a clock of its own, which begins some days ago: our clock judges ends and grace."""

    billing: Billing
    user_id: UUID
    customer: str = ""
    subscription: str = ""
    clock: str = ""
    now: int = 0

    async def begin(self, *, days_ago: float = 0, card: str | None = "pm_card_visa") -> None:
        self.now = int(time.time() - days_ago * DAY_S)
        clock = await self.billing.stripe.api("POST", "test_helpers/test_clocks", frozen_time=str(self.now))
        self.clock = clock["id"]
        named = {"metadata[user_id]": str(self.user_id), "test_clock": self.clock}
        self.customer = (await self.billing.stripe.api("POST", "customers", **named))["id"]
        if card is not None:
            await self.use(card)

    async def use(self, card: str) -> None:
        method = await self.billing.stripe.api("POST", f"payment_methods/{card}/attach", customer=self.customer)
        default = {"invoice_settings[default_payment_method]": method["id"]}
        await self.billing.stripe.api("POST", f"customers/{self.customer}", **default)

    async def subscribe(self, key: str = "pro_monthly", **fields: str) -> dict[str, Any]:
        price = await self.price(key)
        named = {"customer": self.customer, "items[0][price]": price, "metadata[user_id]": str(self.user_id)}
        made = await self.billing.stripe.api("POST", "subscriptions", **named, **fields)
        self.subscription = made["id"]
        return made

    async def price(self, key: str) -> str:
        (price,) = (await self.billing.stripe.api("GET", "prices", **{"lookup_keys[0]": key}))["data"]
        return price["id"]

    async def change(self, part: str = "", /, **fields: str) -> None:
        await self.billing.stripe.api("POST", f"subscriptions/{self.subscription}{part}", **fields)

    async def switch(self, key: str) -> None:
        item = (await self.billing.stripe.api("GET", f"subscriptions/{self.subscription}"))["items"]["data"][0]
        await self.change(**{"items[0][id]": item["id"], "items[0][price]": await self.price(key)})

    async def pass_days(self, days: float) -> None:
        self.now += int(days * DAY_S)
        path = f"test_helpers/test_clocks/{self.clock}"
        await self.billing.stripe.api("POST", f"{path}/advance", frozen_time=str(self.now))

        async def is_there() -> bool:
            return (await self.billing.stripe.api("GET", path))["status"] == "ready"

        await eventually(is_there, within_s=PATIENCE_S)

    async def charge(self) -> str:
        (charge,) = (await self.billing.stripe.api("GET", "charges", customer=self.customer))["data"]
        return charge["id"]

    async def becomes(self, tier: str, status: str) -> None:
        await self.billing.plan_becomes(self.user_id, tier, status)


async def paid_for_the_first_time(life: Life) -> None:
    session = await life.billing.buy(life.user_id, "pro")
    life.customer = session["customer"]


async def the_first_payment_fails(life: Life) -> None:
    await life.begin(card="pm_card_chargeCustomerFail")
    await life.subscribe()


async def never_paid_at_all(life: Life) -> None:
    await the_first_payment_fails(life)
    await life.becomes("free", "incomplete")
    await life.pass_days(1)
    await life.becomes("free", "incomplete_expired")
    assert (await life.billing.checkout(life.user_id)).status_code == 201


async def a_trial_begins(life: Life) -> None:
    await life.begin()
    await life.subscribe(trial_period_days="14")


async def a_trial_is_about_to_end(life: Life) -> None:
    await a_trial_begins(life)
    await life.pass_days(11.1)


async def a_trial_is_paid_for(life: Life) -> None:
    await a_trial_begins(life)
    await life.becomes("pro", "trialing")
    await life.pass_days(14.1)


async def a_trial_ends_without_a_card(life: Life) -> None:
    await life.begin(card=None)
    await life.subscribe(trial_period_days="14", **{"trial_settings[end_behavior][missing_payment_method]": "pause"})
    await life.becomes("pro", "trialing")
    await life.pass_days(14.1)


async def is_paying(life: Life, *, days_ago: float = 0) -> None:
    await life.begin(days_ago=days_ago)
    await life.subscribe()
    await life.becomes("pro", "active")


async def upgraded(life: Life) -> None:
    await is_paying(life)
    await life.switch("pro_plus_monthly")


async def downgraded(life: Life) -> None:
    await life.begin()
    await life.subscribe("pro_plus_monthly")
    await life.becomes("pro+", "active")
    await life.switch("pro_monthly")


async def renewed(life: Life) -> None:
    await is_paying(life, days_ago=31)
    await life.pass_days(31.2)


async def a_collection_fails(life: Life) -> None:
    await is_paying(life, days_ago=31)
    await life.use("pm_card_chargeCustomerFail")
    await life.pass_days(31.2)


async def the_grace_is_over(life: Life) -> None:
    await is_paying(life, days_ago=41)
    await life.use("pm_card_chargeCustomerFail")
    await life.pass_days(32)


async def paid_after_all(life: Life) -> None:
    await a_collection_fails(life)
    await life.becomes("pro", "past_due")
    await life.use("pm_card_visa")
    await life.pass_days(3.1)


async def stripe_gives_up(life: Life) -> None:
    await is_paying(life, days_ago=31)
    await life.use("pm_card_chargeCustomerFail")
    await life.pass_days(51)


async def cancelled_now(life: Life) -> None:
    await is_paying(life)
    await life.billing.stripe.api("DELETE", f"subscriptions/{life.subscription}")


async def is_ending(life: Life) -> None:
    async def probe() -> bool:
        coming = (await life.billing.plan(life.user_id))["next"]
        return coming is not None and coming["what"] == "ends"

    await eventually(probe, within_s=PATIENCE_S)


async def cancelled_for_the_period_s_end(life: Life) -> None:
    await is_paying(life)
    await life.change(cancel_at_period_end="true")
    await is_ending(life)


async def cancelled_for_a_day(life: Life) -> None:
    await is_paying(life)
    await life.change(cancel_at=str(life.now + 40 * DAY_S))
    await is_ending(life)


async def the_end_is_taken_back(life: Life) -> None:
    await cancelled_for_the_period_s_end(life)
    await life.change(cancel_at_period_end="false")

    async def renews() -> bool:
        return (await life.billing.plan(life.user_id))["next"]["what"] == "renews"

    await eventually(renews, within_s=PATIENCE_S)


async def collection_is_paused(life: Life) -> None:
    await is_paying(life)
    await life.change(**{"pause_collection[behavior]": "void"})


async def paused(life: Life) -> None:
    await is_paying(life)
    await life.change("/pause", type="subscription")


async def resumed(life: Life) -> None:
    await paused(life)
    await life.becomes("free", "paused")
    await life.change("/resume")


async def refunded(life: Life) -> None:
    await is_paying(life)
    await life.billing.stripe.api("POST", "refunds", charge=await life.charge())


async def disputed(life: Life) -> None:
    await is_paying(life)
    await life.billing.stripe.control("disputes", charge=await life.charge(), reason="fraudulent")


async def another_subscription_beside(life: Life) -> None:
    await is_paying(life)
    await life.subscribe("pro_plus_monthly")


async def a_price_of_no_plan(life: Life) -> None:
    await life.begin()
    product = await life.billing.stripe.api("POST", "products", name="A T-shirt a month")
    fields = {"product": product["id"], "currency": "usd", "unit_amount": "900", "recurring[interval]": "month"}
    await life.billing.stripe.api("POST", "prices", lookup_key="shirts", **fields)
    await life.subscribe("shirts")


async def the_customer_is_deleted_at_stripe(life: Life) -> None:
    await is_paying(life)
    await life.billing.stripe.api("DELETE", f"customers/{life.customer}")
    await life.becomes("free", "canceled")

    async def makes_another() -> bool:
        opened = await life.billing.checkout(life.user_id)
        session = await life.billing.stripe.api("GET", f"checkout/sessions/{opened.json()['id']}")
        return session["customer"] != life.customer

    await eventually(makes_another, within_s=PATIENCE_S)


SCENARIOS: Final[dict[str, Callable[[Life], Awaitable[None]]]] = {
    "paid for the first time": paid_for_the_first_time,
    "the first payment fails": the_first_payment_fails,
    "never paid at all": never_paid_at_all,
    "a trial begins": a_trial_begins,
    "a trial is about to end": a_trial_is_about_to_end,
    "a trial is paid for": a_trial_is_paid_for,
    "a trial ends without a card": a_trial_ends_without_a_card,
    "upgraded": upgraded,
    "downgraded": downgraded,
    "renewed": renewed,
    "a collection fails": a_collection_fails,
    "the grace is over": the_grace_is_over,
    "paid after all": paid_after_all,
    "Stripe gives up": stripe_gives_up,
    KEPT: stripe_gives_up,
    "cancelled now": cancelled_now,
    "cancelled for the period's end": cancelled_for_the_period_s_end,
    "cancelled for a day": cancelled_for_a_day,
    "the end is taken back": the_end_is_taken_back,
    "collection is paused": collection_is_paused,
    "paused": paused,
    "resumed": resumed,
    "refunded": refunded,
    "disputed": disputed,
    "another subscription beside": another_subscription_beside,
    "a price of no plan": a_price_of_no_plan,
    "the customer is deleted at Stripe": the_customer_is_deleted_at_stripe,
}


def table_in_the_readme() -> dict[str, tuple[set[str], str, str]]:
    """By what happens: the events, the tier and the status."""
    rows = _ROW.findall(README.read_text(encoding="utf-8"))
    return {name: (set(re.findall(r"`([\w.]+)`", events)), TIERS[tier], status) for name, events, tier, status in rows}


async def walk(billing: Billing, name: str, turn: asyncio.Semaphore) -> Life:
    _, tier, status = table_in_the_readme()[name]
    life = Life(billing=billing, user_id=new_id())
    async with turn:
        await SCENARIOS[name](life)
        await life.becomes(tier, status)
    return life


async def is_as_told(life: Life, name: str) -> None:
    """Once everything is handled, the README's events came and the plan is still what it says."""
    events, tier, status = table_in_the_readme()[name]
    # A dispute names no customer.
    seen = await life.billing.database.fetch(
        "SELECT DISTINCT type FROM billing.stripe_events WHERE stripe_customer_id = $1 OR type ~ 'dispute'",
        life.customer,
    )
    assert events - {row["type"] for row in seen} == set(), name
    plan = await life.billing.plan(life.user_id)
    assert (plan["tier"], plan["status"]) == (tier, status), name


async def test_each_line_of_the_readme_s_life_comes_true(billing: Billing) -> None:
    assert set(table_in_the_readme()) == set(SCENARIOS)
    names = [name for name in SCENARIOS if name != KEPT]
    turn = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        walks = {name: group.create_task(walk(billing, name, turn), name=name) for name in names}
    await billing.all_handled()
    for name, walked in walks.items():
        await is_as_told(walked.result(), name)
    ready = (await billing.client.get("/health/ready")).json()
    unclaimed = next(check for check in ready["checks"] if check["name"] == "stripe_subscriptions_unclaimed")
    assert unclaimed["value"] == {"nobodys": 0, "unknown_prices": 1}
    paid = await billing.published("billing.invoice_paid.v1")
    assert len({event["stripe_invoice_id"] for event in paid}) == len(paid)


async def test_an_account_that_keeps_unpaid_subscriptions_gives_nothing_for_them(place: Place, tmp_path: Path) -> None:
    flags = ("--after-final-failure", "unpaid")
    async with open_billing(place, tmp_path / "stripe.db", flags=flags) as billing:
        life = await walk(billing, KEPT, asyncio.Semaphore())
        await billing.all_handled()
        await is_as_told(life, KEPT)
