"""Usage that a plan charges for reaches Stripe's meter once, whatever is lost on the way, and totals are compared."""

from collections.abc import AsyncGenerator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest

from libs.common.clock import system_clock
from libs.common.database import connect
from libs.common.events.metering import UsageSettled
from libs.common.ids import new_id
from services.billing import operations, usage_operations
from tests.builders import METER, metered_plans
from tests.harness.billing import PATIENCE_S, Billing, open_billing
from tests.harness.patience import eventually
from tests.harness.services import Place, service_headers
from tests.harness.stripe_emulator import make_meter

HOUR_AGO = timedelta(hours=2)


@pytest.fixture
async def metered_billing(place: Place, tmp_path: Path) -> AsyncGenerator[Billing, None]:
    async with open_billing(place, tmp_path / "stripe.db", plans=metered_plans()) as opened:
        yield opened


@pytest.fixture
async def payer(metered_billing: Billing, user_id: UUID) -> UUID:
    """A user of the metered plan, with a meter at Stripe."""
    meter_id = await make_meter(metered_billing.stripe, METER)
    await make_price(metered_billing, meter_id)
    await metered_billing.buy(user_id, "pro")
    await metered_billing.plan_becomes(user_id, "pro", "active")
    return user_id


async def make_price(billing: Billing, meter_id: str) -> None:
    (base,) = (await billing.stripe.api("GET", "prices", **{"lookup_keys[0]": "pro_monthly"}))["data"]
    await billing.stripe.api(
        "POST",
        "prices",
        **{
            "product": base["product"],
            "currency": "usd",
            "unit_amount": "1",
            "lookup_key": "pro_tokens",
            "recurring[interval]": "month",
            "recurring[usage_type]": "metered",
            "recurring[meter]": meter_id,
        },
    )


def settled(user_id: UUID, *, ago: timedelta = HOUR_AGO, **amounts: int) -> UsageSettled:
    return UsageSettled(
        user_id=user_id,
        hold_id=new_id(),
        amounts={"runs": 1, **amounts},
        period_start=system_clock(),
        occurred_at=system_clock() - ago,
    )


async def settle(billing: Billing, user_id: UUID, *, ago: timedelta = HOUR_AGO, **amounts: int) -> UsageSettled:
    """What the consumer does with `usage_settled`."""
    event = settled(user_id, ago=ago, **amounts)
    await record(billing, event)
    return event


async def record(billing: Billing, *events: UsageSettled) -> None:
    url = billing.settings.database_url.get_secret_value()
    async with connect(url, application_name="test", min_size=1) as database, database.transaction() as conn:
        await usage_operations.record_usage(conn, events, plans=metered_plans())


async def reports(billing: Billing) -> list[dict[str, Any]]:
    return await billing.database.fetch("SELECT value, state, last_error FROM billing.usage_reports ORDER BY value")


async def all_are(billing: Billing, state: str) -> None:
    async def probe() -> bool:
        return {row["state"] for row in await reports(billing)} == {state}

    await eventually(probe, within_s=PATIENCE_S)


async def counted(billing: Billing) -> float:
    """What Stripe's meter has of our one customer, over all time."""
    (customer,) = (await billing.stripe.api("GET", "customers"))["data"]
    (meter,) = (await billing.stripe.api("GET", "billing/meters"))["data"]
    now = int(system_clock().timestamp()) // 60 * 60
    summaries = await billing.stripe.api(
        "GET",
        f"billing/meters/{meter['id']}/event_summaries",
        customer=customer["id"],
        start_time=str(now - 40 * 86_400),
        end_time=str(now + 60),
    )
    return summaries["data"][0]["aggregated_value"]


async def test_of_settlements_that_come_together_each_is_reported_once(metered_billing: Billing, payer: UUID) -> None:
    ten, four = settled(payer, tokens=10), settled(payer, tokens=4)
    await record(metered_billing, ten, settled(new_id(), tokens=9), four, ten, settled(payer, tokens=0))
    await all_are(metered_billing, "sent")
    assert [row["value"] for row in await reports(metered_billing)] == [4, 10]


async def test_settled_usage_of_a_metered_plan_reaches_the_meter_once(metered_billing: Billing, payer: UUID) -> None:
    event = await settle(metered_billing, payer, tokens=120)
    await record(metered_billing, event)
    await settle(metered_billing, payer, tokens=3)
    await settle(metered_billing, payer, tokens=0)
    await settle(metered_billing, new_id(), tokens=500)
    await all_are(metered_billing, "sent")
    assert [row["value"] for row in await reports(metered_billing)] == [3, 120]
    assert await counted(metered_billing) == 123


async def test_the_checkout_of_a_metered_plan_sells_both_prices(metered_billing: Billing, payer: UUID) -> None:
    assert payer
    (subscription,) = (await metered_billing.stripe.api("GET", "subscriptions"))["data"]
    items = subscription["items"]["data"]
    assert {item["price"]["lookup_key"] for item in items} == {"pro_monthly", "pro_tokens"}


@pytest.mark.parametrize("kind", ["applied_then_cut", "applied_then_status", "cut", "status"])
async def test_an_answer_of_stripe_that_is_lost_charges_nothing_twice(
    metered_billing: Billing, payer: UUID, kind: str
) -> None:
    await metered_billing.stripe.control("faults", kind=kind, method="POST", path="/v1/billing/meter_events", times=5)
    await settle(metered_billing, payer, tokens=7)
    await all_are(metered_billing, "sent")
    assert await counted(metered_billing) == 7


async def test_after_a_day_stripe_is_asked_what_it_counted_before_anything_is_sent_again(
    metered_billing: Billing, payer: UUID
) -> None:
    await settle(metered_billing, payer, tokens=50)
    await settle(metered_billing, payer, tokens=9)
    await all_are(metered_billing, "sent")
    # Both answers were lost and the worker was dead for two days; Stripe has forgotten the names meanwhile.
    await metered_billing.stripe.control("clock/advance", days=2)
    await metered_billing.database.execute(
        """
        UPDATE billing.usage_reports
        SET state = 'waiting', settled_at = NULL, due_at = now(), tried_at = now() - interval '2 days'
        """
    )
    # One that was tried and never arrived.
    lost = await settle(metered_billing, payer, ago=timedelta(days=2), tokens=4)
    await metered_billing.database.execute(
        "UPDATE billing.usage_reports SET tried_at = now() - interval '2 days' WHERE hold_id = $1", lost.hold_id
    )
    await all_are(metered_billing, "sent")
    assert await counted(metered_billing) == 63


async def deliver_thin_events(billing: Billing) -> None:
    for event in await billing.stripe.thin_events():
        payload = orjson.dumps({name: value for name, value in event.items() if name != "data"})
        assert (await billing.post_webhook(payload, billing.signature(payload))).status_code == 200
    await billing.all_handled()


async def test_usage_stripe_complains_of_is_shown_and_can_be_reported_again(
    metered_billing: Billing, payer: UUID
) -> None:
    billing = metered_billing
    (meter,) = (await billing.stripe.api("GET", "billing/meters"))["data"]
    await billing.stripe.api("POST", f"billing/meters/{meter['id']}/deactivate")
    await settle(billing, payer, tokens=11)
    await all_are(billing, "sent")
    await deliver_thin_events(billing)
    assert await reports(billing) == [{"value": 11, "state": "refused", "last_error": "no_meter"}]
    ready = (await billing.client.get("/health/ready")).json()
    assert next(one["value"] for one in ready["checks"] if one["name"] == "usage_refused") == {"no_meter": 1}
    headers = service_headers("billing")
    listed = await billing.client.get("/internal/admin/usage-reports", params={"state": "refused"}, headers=headers)
    assert [(item["value"], item["last_error"]) for item in listed.json()["items"]] == [(11, "no_meter")]
    await billing.stripe.api("POST", f"billing/meters/{meter['id']}/reactivate")
    resent = await billing.client.post("/internal/admin/usage-reports/resend", json={"meter": METER}, headers=headers)
    assert (resent.status_code, resent.json()) == (202, {"reports": 1})
    await all_are(billing, "sent")
    assert await counted(billing) == 11


async def test_usage_older_than_stripe_takes_is_refused_and_says_why(metered_billing: Billing, payer: UUID) -> None:
    await settle(metered_billing, payer, ago=timedelta(days=36), tokens=5)
    await all_are(metered_billing, "refused")
    (row,) = await reports(metered_billing)
    assert "timestamp_too_far_in_past" in row["last_error"]


async def test_totals_that_differ_are_drift(metered_billing: Billing, payer: UUID) -> None:
    billing = metered_billing
    await settle(billing, payer, tokens=20)
    await all_are(billing, "sent")
    await billing.database.execute("UPDATE billing.usage_reports SET settled_at = now() - interval '2 hours'")
    agreed = await billing.reconcile()
    assert (agreed["total"], agreed["run"]["counts"]["usage"]) == (0, 1)
    await billing.database.execute("UPDATE billing.usage_reports SET value = 25")
    (row,) = (await billing.reconcile(fix=True))["drift"]
    assert (row["what"], row["ours"], row["theirs"]) == ("usage", 25, 20)
    assert row["object_id"].startswith("usage:cus_")


async def test_a_deleted_user_s_reports_are_erased(metered_billing: Billing, payer: UUID) -> None:
    await settle(metered_billing, payer, tokens=1)
    url = metered_billing.settings.database_url.get_secret_value()
    async with connect(url, application_name="test", min_size=1) as database, database.transaction() as conn:
        await operations.request_erasure(conn, user_id=payer, profile_customer_id=None, has_payments=True)

    async def erased() -> bool:
        return len(await metered_billing.published("billing.user_erased.v1", payer)) == 1

    await eventually(erased)
    assert await reports(metered_billing) == []
