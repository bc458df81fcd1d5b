"""The comparison with Stripe: what a lost webhook leaves behind is found, reported, and mended on request."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from libs.common.database import connect
from libs.common.ids import new_id
from libs.common.plans import load_plans
from ops.reconcile import reconcile as operators_reconcile
from services.billing import operations
from services.billing.checkout import Desk
from services.billing.domain import Page, Purchase, Rules, StripeCustomer, StripeSubscription, Unreadable
from services.billing.jobs import StripeSync
from services.billing.reconcile import Reconciler
from tests.fakes.payments import FakePayments
from tests.harness.billing import Billing
from tests.harness.database import TestDatabase
from tests.harness.services import service_headers


async def check(billing: Billing, name: str) -> dict[str, Any]:
    ready = (await billing.client.get("/health/ready")).json()
    return next(one for one in ready["checks"] if one["name"] == name)


async def test_one_pass_heals_days_without_webhooks(quiet_billing: Billing) -> None:
    billing = quiet_billing
    users = [new_id() for _ in range(3)]
    sold = [(await billing.buy(user, tier)) for user, tier in zip(users, ("pro", "pro+", "enterprise"), strict=True)]
    await billing.stripe.control("clock/advance", days=1)
    await billing.stripe.api("DELETE", f"subscriptions/{sold[0]['subscription']}")
    await billing.stripe.control("clock/advance", days=2)
    await billing.stripe.api("POST", f"subscriptions/{sold[1]['subscription']}", cancel_at_period_end="true")
    assert [(await billing.plan(user))["tier"] for user in users] == ["free"] * 3
    report = await billing.reconcile(fix=True)
    assert (report["total"], report["run"]["counts"]["mended"]) == (0, 6)
    assert [(await billing.plan(user))["tier"] for user in users] == ["free", "pro+", "enterprise"]
    assert [(await billing.plan(user))["status"] for user in users] == ["canceled", "active", "active"]
    assert (await billing.plan(users[1]))["next"]["what"] == "ends"
    for user in users:
        assert len(await billing.published("billing.invoice_paid.v1", user)) == 1
    again = await billing.reconcile()
    assert (again["total"], again["run"]["counts"]["drifting"]) == (0, 0)


async def test_drift_is_reported_since_when_and_fails_readiness_until_it_is_mended(
    quiet_billing: Billing, user_id: UUID
) -> None:
    billing = quiet_billing
    session = await billing.buy(user_id)
    first = await billing.reconcile()
    assert {row["object_id"] for row in first["drift"]} == {session["subscription"], session["invoice"]}
    assert {(row["what"], row["ours"], row["theirs"]) for row in first["drift"]} == {("missing", None, "present")}
    assert (await billing.plan(user_id))["tier"] == "free"
    assert (await check(billing, "stripe_drift"))["status"] == "failed"
    second = await billing.reconcile()
    assert [row["since"] for row in second["drift"]] == [row["since"] for row in first["drift"]]
    await billing.reconcile(fix=True)
    assert (await check(billing, "stripe_drift"))["status"] == "ok"
    assert (await billing.plan(user_id))["tier"] == "pro"


async def test_the_operator_s_command_mends_and_prints_what_is_left(
    quiet_billing: Billing, user_id: UUID, capsys: pytest.CaptureFixture[str]
) -> None:
    billing = quiet_billing
    await billing.buy(user_id)
    url = billing.database.url("venture_operator")
    assert await asyncio.to_thread(operators_reconcile, url, is_fixing=False) == 2
    assert "missing: ours None, theirs present" in capsys.readouterr().out
    assert await asyncio.to_thread(operators_reconcile, url, is_fixing=True) == 0
    assert (await billing.plan(user_id))["tier"] == "pro"


async def test_a_fact_that_differs_is_named(quiet_billing: Billing, user_id: UUID) -> None:
    billing = quiet_billing
    session = await billing.buy(user_id)
    await billing.reconcile(fix=True)
    await billing.database.execute("UPDATE billing.subscriptions SET status = 'past_due'")
    report = await billing.reconcile()
    assert [(row["object_id"], row["what"], row["ours"], row["theirs"]) for row in report["drift"]] == [
        (session["subscription"], "status", "past_due", "active")
    ]


class OneIsStrange(FakePayments):
    """Stripe has subscriptions, and one of them in a status of next year."""

    async def list_subscriptions(self, *, after: str | None) -> Page[StripeSubscription]:
        page = await super().list_subscriptions(after=after)
        return replace(page, unreadable=["sub_strange"])

    async def fetch_subscription(self, subscription_id: str) -> StripeSubscription | None:
        if subscription_id == "sub_strange":
            raise Unreadable("a status of next year")
        return await super().fetch_subscription(subscription_id)


async def test_an_object_nobody_can_read_is_reported_and_hides_no_other(
    test_database: TestDatabase, user_id: UUID
) -> None:
    payments, rules = OneIsStrange(), Rules(plans=load_plans(), grace=timedelta(days=7))
    async with connect(test_database.url("venture_billing"), application_name="test") as database:
        purchase = Purchase(user_id=user_id, email=None, tier="pro", success_url="https://a/", cancel_url="https://a/")
        subscription_id, _ = payments.complete((await Desk(database, payments, rules).open_checkout(purchase)).id)
        async with database.transaction() as conn:
            await operations.request_reconciliation(conn, run_id=new_id(), is_fixing=True)
        sync = StripeSync(database, payments, rules, woken=asyncio.Event())
        assert await Reconciler(database, payments, rules, sync).run_once()
    assert await test_database.fetchval("SELECT id FROM billing.subscriptions WHERE tier = 'pro'") == subscription_id
    (drift,) = await test_database.fetch("SELECT object_id, what, theirs FROM billing.drift")
    assert drift == {"object_id": "sub_strange", "what": "unreadable", "theirs": "a status of next year"}


class IsBroken(FakePayments):
    async def list_customers(self, *, after: str | None) -> Page[StripeCustomer]:
        raise KeyError(after)


async def test_a_comparison_that_breaks_waits_with_its_reason(test_database: TestDatabase) -> None:
    payments, rules = IsBroken(), Rules(plans=load_plans(), grace=timedelta(days=7))
    async with connect(test_database.url("venture_billing"), application_name="test") as database:
        async with database.transaction() as conn:
            await operations.request_reconciliation(conn, run_id=new_id(), is_fixing=False)
        sync = StripeSync(database, payments, rules, woken=asyncio.Event())
        assert not await Reconciler(database, payments, rules, sync).run_once()
    (run,) = await test_database.fetch("SELECT finished_at, last_error FROM billing.reconciliations")
    assert run == {"finished_at": None, "last_error": "KeyError"}


async def test_a_customer_deleted_at_stripe_is_found_and_let_go(quiet_billing: Billing, user_id: UUID) -> None:
    billing = quiet_billing
    session = await billing.buy(user_id)
    await billing.reconcile(fix=True)
    await billing.stripe.api("DELETE", f"customers/{session['customer']}")
    assert (await billing.reconcile())["total"] > 0
    assert (await billing.reconcile(fix=True))["total"] == 0
    assert (await billing.plan(user_id))["status"] == "canceled"
    assert await billing.database.fetchval("SELECT stripe_customer_id FROM billing.customers") is None


async def test_a_profile_changed_by_hand_is_reported_and_left_alone(billing: Billing, user_id: UUID) -> None:
    await billing.database.execute(
        "INSERT INTO billing.profiles (user_id, version, tier, status) VALUES ($1, 3, 'pro', 'active')", user_id
    )
    (row,) = (await billing.reconcile(fix=True))["drift"]
    assert (row["object_id"], row["what"]) == (f"user:{user_id}", "profile")
    assert row["ours"] == {"tier": "pro", "status": "active"}
    assert row["theirs"] == {"tier": "free", "status": "inactive"}
    assert await billing.published("billing.subscription_changed.v1", user_id) == []
    assert (await check(billing, "stripe_drift"))["status"] == "ok"


async def test_stripe_s_limit_slows_a_comparison_down_and_does_not_end_it(
    quiet_billing: Billing, user_id: UUID
) -> None:
    await quiet_billing.buy(user_id)
    await quiet_billing.stripe.control("faults", kind="status", method="GET", path="/v1/invoices", status=429, times=2)
    assert (await quiet_billing.reconcile(fix=True))["total"] == 0


@pytest.mark.parametrize("path", ["/internal/admin/reconcile", "/internal/admin/webhook-events"])
async def test_operators_routes_are_closed_to_users(billing: Billing, user_id: UUID, path: str) -> None:
    answer = await billing.client.get(path, headers=service_headers("billing", user_id=user_id))
    assert (answer.status_code, answer.json()["code"]) == (403, "billing.not_an_admin")


async def test_events_are_replayed_one_by_one_or_by_filter(billing: Billing, user_id: UUID) -> None:
    await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.all_handled()
    await billing.database.execute("UPDATE billing.subscriptions SET status = 'canceled'")
    headers = service_headers("billing")
    found = await billing.client.get(
        "/internal/admin/webhook-events", params={"type": "customer.subscription.created"}, headers=headers
    )
    (event,) = found.json()["items"]
    for body in ({"event_id": event["id"]}, {"type": "customer.subscription.created"}):
        replayed = await billing.client.post("/internal/admin/webhook-events/replay", json=body, headers=headers)
        assert (replayed.status_code, replayed.json()) == (202, {"objects": 1})
    await billing.all_handled()
    assert await billing.database.fetchval("SELECT status FROM billing.subscriptions") == "active"


async def test_an_operator_links_a_customer_to_another_user(billing: Billing, user_id: UUID) -> None:
    session = await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.all_handled()
    other = new_id()
    linked = await billing.client.post(
        "/internal/admin/customers/link",
        json={"user_id": str(other), "stripe_customer_id": session["customer"]},
        headers=service_headers("billing"),
    )
    assert linked.status_code == 202, linked.text
    await billing.plan_becomes(other, "pro", "active")
    await billing.plan_becomes(user_id, "free", "inactive")
