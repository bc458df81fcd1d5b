"""A deleted user: cancelled and deleted at Stripe, erased here, the books kept without the person."""

from uuid import UUID

import orjson

from libs.common.database import connect
from libs.common.ids import new_id
from services.billing import operations
from tests.harness.billing import Billing
from tests.harness.patience import eventually
from tests.harness.services import service_headers


async def delete_user(billing: Billing, user_id: UUID, *, profile_customer_id: str | None = None) -> None:
    """What the consumer does with `user_deleted`."""
    url = billing.settings.database_url.get_secret_value()
    async with connect(url, application_name="test", min_size=1) as database, database.transaction() as conn:
        await operations.request_erasure(
            conn, user_id=user_id, profile_customer_id=profile_customer_id, has_payments=True
        )


async def is_erased(billing: Billing, user_id: UUID) -> None:
    async def probe() -> bool:
        return len(await billing.published("billing.user_erased.v1", user_id)) == 1

    await eventually(probe)


async def test_a_paying_user_is_erased_at_stripe_and_here(billing: Billing, user_id: UUID) -> None:
    session = await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.all_handled()
    await delete_user(billing, user_id)
    await is_erased(billing, user_id)
    customer = await billing.stripe.api("GET", f"customers/{session['customer']}")
    assert customer["deleted"] is True
    subscription = await billing.stripe.api("GET", f"subscriptions/{session['subscription']}")
    assert subscription["status"] == "canceled"
    await billing.all_handled()
    for table in ("customers", "accounts", "checkouts", "subscriptions"):
        assert await billing.database.fetchval(f"SELECT count(*) FROM billing.{table}") == 0, table  # noqa: S608
    (invoice,) = await billing.database.fetch("SELECT * FROM billing.invoices")
    assert (invoice["user_id"], invoice["stripe_customer_id"], invoice["hosted_url"]) == (None, None, None)
    assert invoice["amount_paid_minor"] == 2900
    events = await billing.database.fetch("SELECT payload, object_id, stripe_customer_id FROM billing.stripe_events")
    assert session["customer"] not in orjson.dumps(events).decode()


async def test_a_user_who_never_paid_is_erased_at_once(billing: Billing, user_id: UUID) -> None:
    await delete_user(billing, user_id)
    assert len(await billing.published("billing.user_erased.v1", user_id)) == 1
    assert await billing.database.fetchval("SELECT stripe_done_at IS NOT NULL FROM billing.erasures")


async def test_a_deletion_told_twice_is_done_once(billing: Billing, user_id: UUID) -> None:
    await billing.checkout(user_id)
    await delete_user(billing, user_id)
    await delete_user(billing, user_id)
    await is_erased(billing, user_id)
    await delete_user(billing, user_id)
    assert len(await billing.published("billing.user_erased.v1", user_id)) == 1


async def test_a_customer_already_gone_at_stripe_is_no_obstacle(billing: Billing, user_id: UUID) -> None:
    session = await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.stripe.api("DELETE", f"customers/{session['customer']}")
    await billing.all_handled()
    await delete_user(billing, user_id, profile_customer_id=session["customer"])
    await is_erased(billing, user_id)


async def test_a_profile_that_names_somebody_else_s_customer_does_not_delete_it(
    billing: Billing, user_id: UUID
) -> None:
    session = await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    other = new_id()
    await delete_user(billing, other, profile_customer_id=session["customer"])
    await is_erased(billing, other)
    assert "deleted" not in await billing.stripe.api("GET", f"customers/{session['customer']}")
    await billing.plan_becomes(user_id, "pro", "active")


async def test_while_stripe_is_away_the_wish_stays(billing: Billing, user_id: UUID) -> None:
    await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.all_handled()
    await billing.stripe.control("faults", kind="status", method="DELETE", status=500, times=8)
    await delete_user(billing, user_id)
    await is_erased(billing, user_id)


async def test_a_deleted_user_s_token_buys_nothing(billing: Billing, user_id: UUID) -> None:
    await delete_user(billing, user_id)
    answer = await billing.client.post(
        "/internal/checkout", json={"tier": "pro"}, headers=service_headers("billing", user_id=user_id)
    )
    assert (answer.status_code, answer.json()["code"]) == (409, "billing.account_deleted")
    assert (await billing.stripe.api("GET", "customers"))["data"] == []
