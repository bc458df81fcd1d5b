"""Stripe's webhook as it arrives: what is stored, what is refused, and that nothing is stored of what is refused."""

import asyncio
import random
import time
from typing import Any
from uuid import UUID

import orjson

from libs.common.ids import new_id
from tests.harness.billing import Billing
from tests.harness.patience import eventually


def a_payload(**changes: Any) -> bytes:
    event = {
        "id": "evt_1",
        "object": "event",
        "type": "charge.succeeded",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": {"id": "ch_1", "object": "charge"}},
    }
    return orjson.dumps({**event, **changes})


async def stored(billing: Billing) -> int:
    return await billing.database.fetchval("SELECT count(*) FROM billing.stripe_events")


async def test_forged_old_future_and_garbled_signatures_leave_no_row(quiet_billing: Billing) -> None:
    billing, payload, now = quiet_billing, a_payload(), int(time.time())
    signatures = {
        "none": None,
        "garbage": "garbage",
        "another secret": billing.signature(payload, secret="whsec_of_somebody_else"),
        "another body": billing.signature(a_payload(id="evt_2")),
        "old": billing.signature(payload, timestamp=now - 310),
        "future": billing.signature(payload, timestamp=now + 310),
    }
    answers = {name: await billing.post_webhook(payload, signature) for name, signature in signatures.items()}
    assert {name: answer.status_code for name, answer in answers.items()} == dict.fromkeys(signatures, 400)
    assert answers["old"].json()["code"] == "billing.webhook_out_of_time"
    assert answers["garbage"].json()["code"] == "billing.webhook_signature"
    assert await stored(billing) == 0


async def test_a_clock_four_minutes_off_is_tolerated_either_way(quiet_billing: Billing) -> None:
    for seconds in (-290, 290):
        payload = a_payload(id=f"evt_{seconds + 1000}")
        signature = quiet_billing.signature(payload, timestamp=int(time.time()) + seconds)
        assert (await quiet_billing.post_webhook(payload, signature)).status_code == 200
    assert await stored(quiet_billing) == 2


async def test_genuine_events_that_are_not_for_us_leave_no_row(quiet_billing: Billing) -> None:
    for payload in (
        a_payload(livemode=True),
        a_payload(account="acct_1"),
        a_payload(object="v2.core.event"),
        b"not json",
    ):
        answer = await quiet_billing.post_webhook(payload, quiet_billing.signature(payload))
        assert (answer.status_code, answer.json()["code"]) == (400, "billing.webhook_refused")
    assert await stored(quiet_billing) == 0


async def test_a_body_over_a_mebibyte_is_refused(quiet_billing: Billing) -> None:
    payload = a_payload(padding="x" * (1024 * 1024))
    answer = await quiet_billing.post_webhook(payload, quiet_billing.signature(payload))
    assert answer.status_code == 413
    assert await stored(quiet_billing) == 0


async def test_an_unknown_type_is_stored_once_however_often_it_comes(quiet_billing: Billing) -> None:
    payload = a_payload(type="something.brand_new")
    answers = await asyncio.gather(
        *(quiet_billing.post_webhook(payload, quiet_billing.signature(payload)) for _ in range(10))
    )
    assert {answer.status_code for answer in answers} == {200}
    (row,) = await quiet_billing.database.fetch("SELECT type, handled_at FROM billing.stripe_events")
    assert row["type"] == "something.brand_new"
    assert row["handled_at"] is not None


TABLES = {
    "subscriptions": """
        SELECT id, user_id, stripe_customer_id, status, tier, price_id, price_lookup_key, current_period_start,
            current_period_end, cancel_at, cancel_at_period_end, canceled_at, ended_at, trial_end, past_due_since,
            created_at
        FROM billing.subscriptions ORDER BY id""",
    "invoices": """
        SELECT id, user_id, stripe_customer_id, stripe_subscription_id, number, status, amount_due_minor,
            amount_paid_minor, attempt_count, next_attempt_at, period_start, period_end, paid_at, created_at
        FROM billing.invoices ORDER BY id""",
    "customers": "SELECT user_id, stripe_customer_id FROM billing.customers ORDER BY user_id",
    "accounts": """
        SELECT user_id, tier, status, current_period_start, current_period_end, cancel_at, trial_end,
            stripe_customer_id, review_at
        FROM billing.accounts ORDER BY user_id""",
    "stripe_events": """
        SELECT id, type, object_id, handled_at IS NOT NULL AS is_handled FROM billing.stripe_events ORDER BY id""",
}


async def snapshot(billing: Billing) -> dict[str, Any]:
    return {name: await billing.database.fetch(sql) for name, sql in TABLES.items()}


async def forget(billing: Billing) -> None:
    """As if no event had ever come: only what Stripe has remains."""
    await billing.database.execute(
        "TRUNCATE billing.subscriptions, billing.invoices, billing.customers, billing.accounts, billing.stripe_events,"
        " billing.refreshes, billing.outbox"
    )


async def nothing_due(billing: Billing) -> None:
    async def probe() -> bool:
        return await billing.database.fetchval(
            "SELECT NOT EXISTS (SELECT FROM billing.refreshes WHERE done < wanted)"
            " AND NOT EXISTS (SELECT FROM billing.stripe_events WHERE handled_at IS NULL)"
        )

    await eventually(probe)


async def test_any_order_and_duplication_of_events_ends_in_the_same_tables(quiet_billing: Billing) -> None:
    billing = quiet_billing
    users = [new_id() for _ in range(3)]
    subscriptions = [
        (await billing.buy(user_id, tier))["subscription"]
        for user_id, tier in zip(users, ("pro", "pro+", "enterprise"), strict=True)
    ]
    await billing.stripe.api("POST", f"subscriptions/{subscriptions[0]}", cancel_at_period_end="true")
    await billing.stripe.api("DELETE", f"subscriptions/{subscriptions[1]}")
    payloads = [orjson.dumps(event) for event in await billing.stripe.events()]
    pictures: list[dict[str, Any]] = []
    for seed in range(4):
        await forget(billing)
        order = payloads * 3
        random.Random(seed).shuffle(order)  # noqa: S311 - an order that comes again
        for start in range(0, len(order), 16):
            answers = await asyncio.gather(
                *(billing.post_webhook(payload, billing.signature(payload)) for payload in order[start : start + 16])
            )
            assert {answer.status_code for answer in answers} == {200}
        await nothing_due(billing)
        pictures.append(await snapshot(billing))
        told = [(await billing.published("billing.subscription_changed.v1", user))[-1]["tier"] for user in users]
        assert told[0] == "pro"
        assert told[2] == "enterprise"
    assert len(pictures[0]["subscriptions"]) == 3
    assert [row["tier"] for row in sorted(pictures[0]["accounts"], key=lambda row: users.index(row["user_id"]))] == [
        "pro",
        "free",
        "enterprise",
    ]
    assert all(picture == pictures[0] for picture in pictures)


async def test_events_of_nobody_s_customer_are_stored_and_shown(quiet_billing: Billing, user_id: UUID) -> None:
    billing = quiet_billing
    customer = await billing.stripe.api("POST", "customers", email="walk-in@example.com")
    method = await billing.stripe.api("POST", "payment_methods/pm_card_visa/attach", customer=customer["id"])
    (price,) = (await billing.stripe.api("GET", "prices", **{"lookup_keys[0]": "pro_monthly"}))["data"]
    await billing.stripe.api(
        "POST",
        "subscriptions",
        **{"customer": customer["id"], "items[0][price]": price["id"], "default_payment_method": method["id"]},
    )
    for event in await billing.stripe.events():
        payload = orjson.dumps(event)
        assert (await billing.post_webhook(payload, billing.signature(payload))).status_code == 200
    await nothing_due(billing)
    (row,) = await billing.database.fetch("SELECT user_id, status, tier FROM billing.subscriptions")
    assert row == {"user_id": None, "status": "active", "tier": "pro"}
    ready = (await billing.client.get("/health/ready")).json()
    unclaimed = next(check for check in ready["checks"] if check["name"] == "stripe_subscriptions_unclaimed")
    assert unclaimed["value"] == {"nobodys": 1, "unknown_prices": 0}
    # An operator names the user at Stripe, and what was stored is that user's.
    await billing.stripe.api("POST", f"customers/{customer['id']}", **{"metadata[user_id]": str(user_id)})
    payload = orjson.dumps((await billing.stripe.events())[-1])
    await billing.post_webhook(payload, billing.signature(payload))
    await billing.plan_becomes(user_id, "pro", "active")
    assert [paid["amount_minor"] for paid in await billing.published("billing.invoice_paid.v1", user_id)] == [2900]
