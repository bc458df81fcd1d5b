"""What happens to a plan after it was bought: renewals that fail, endings, faults of Stripe, clocks."""

from typing import Any
from uuid import UUID

from tests.harness.billing import Billing
from tests.harness.patience import eventually
from tests.harness.services import service_headers


async def test_a_failed_renewal_keeps_the_tier_for_the_grace_and_then_ends_it(billing: Billing, user_id: UUID) -> None:
    session = await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.stripe.control("outcomes", customer=session["customer"], outcomes=["card_declined"])
    await billing.stripe.control("clock/advance", interval="month")
    await billing.stripe.control("clock/advance", seconds=7200)
    await billing.plan_becomes(user_id, "pro", "past_due")
    await billing.all_handled()
    (failed,) = await billing.published("billing.payment_failed.v1", user_id)
    assert (failed["attempt"], failed["amount_minor"]) == (1, 2900)
    # Stripe's clock was moved, the database's was not: let the grace have begun eight days ago instead.
    (row,) = await billing.database.fetch("SELECT past_due_since FROM billing.subscriptions")
    assert row["past_due_since"] is not None
    await billing.database.execute("UPDATE billing.subscriptions SET past_due_since = now() - interval '8 days'")
    await billing.database.execute("UPDATE billing.accounts SET review_at = now()")
    await billing.plan_becomes(user_id, "free", "past_due")


async def test_cancelling_at_the_period_s_end_keeps_the_plan_until_the_database_s_clock_is_there(
    billing: Billing, user_id: UUID
) -> None:
    session = await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.stripe.api("POST", f"subscriptions/{session['subscription']}", cancel_at_period_end="true")

    async def is_ending() -> bool:
        return (await billing.plan(user_id))["cancel_at"] is not None

    await eventually(is_ending)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.all_handled()
    await billing.database.execute("UPDATE billing.subscriptions SET cancel_at = now(), current_period_end = now()")
    await billing.database.execute("UPDATE billing.accounts SET review_at = now()")
    await billing.plan_becomes(user_id, "free", "canceled")


async def test_a_review_that_finds_nothing_new_tells_nothing(billing: Billing, user_id: UUID) -> None:
    await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.all_handled()
    await billing.database.execute("UPDATE billing.accounts SET review_at = now()")

    async def reviewed() -> bool:
        return await billing.database.fetchval("SELECT review_at IS NULL FROM billing.accounts")

    await eventually(reviewed)
    assert len(await billing.published("billing.subscription_changed.v1", user_id)) == 1


async def test_an_answer_of_stripe_that_was_lost_makes_no_second_customer(billing: Billing, user_id: UUID) -> None:
    for path in ("/v1/customers", "/v1/checkout/sessions"):
        await billing.stripe.control("faults", kind="applied_then_status", method="POST", path=path, times=3)
    first = await billing.checkout(user_id)
    assert first.status_code == 503
    assert first.headers["Retry-After"]

    async def opened() -> bool:
        return (await billing.checkout(user_id)).status_code == 201

    await eventually(opened, within_s=20)
    assert len((await billing.stripe.api("GET", "customers"))["data"]) == 1
    assert len((await billing.stripe.api("GET", "checkout/sessions"))["data"]) == 1


async def test_while_stripe_is_away_events_wait_and_then_take_effect(billing: Billing, user_id: UUID) -> None:
    opened = await billing.checkout(user_id)
    await billing.stripe.control("faults", kind="status", method="GET", path="/v1/subscriptions/*", status=500, times=6)
    await billing.stripe.complete(opened.json()["id"])
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.all_handled()


async def test_a_stripe_that_hangs_is_given_up_within_five_seconds(billing: Billing, user_id: UUID) -> None:
    await billing.stripe.control("faults", kind="delay", method="POST", path="/v1/customers", delay_s=6)
    answer = await billing.checkout(user_id)
    assert (answer.status_code, answer.json()["code"]) == (503, "billing.payments_unavailable")
    assert answer.elapsed.total_seconds() < 5


async def test_another_tier_ends_the_first_checkout(billing: Billing, user_id: UUID) -> None:
    first, second = await billing.checkout(user_id, "pro"), await billing.checkout(user_id, "pro+")
    assert second.status_code == 201
    session = await billing.stripe.api("GET", f"checkout/sessions/{first.json()['id']}")
    assert session["status"] == "expired"
    assert (await billing.checkout(user_id, "pro+")).json()["id"] == second.json()["id"]


async def test_the_portal_opens_once_there_is_a_customer(billing: Billing, user_id: UUID) -> None:
    headers = service_headers("billing", user_id=user_id)
    before = await billing.client.post("/internal/portal", headers=headers)
    assert (before.status_code, before.json()["code"]) == (409, "billing.no_customer")
    await billing.checkout(user_id)
    opened = await billing.client.post("/internal/portal", headers=headers)
    assert opened.status_code == 200, opened.text
    assert opened.json()["url"].startswith(billing.stripe.url)


async def test_invoices_are_listed_page_by_page_to_their_owner_alone(billing: Billing, user_id: UUID) -> None:
    await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.stripe.control("clock/advance", interval="month")
    await billing.stripe.control("clock/advance", seconds=7200)
    await billing.all_handled()

    async def page(owner: UUID, **query: str | int) -> dict[str, Any]:
        answer = await billing.client.get(
            "/internal/invoices", params=query, headers=service_headers("billing", user_id=owner)
        )
        assert answer.status_code == 200, answer.text
        return answer.json()

    whole = await page(user_id)
    assert [item["status"] for item in whole["items"]] == ["paid", "paid"]
    first = await page(user_id, limit=1)
    second = await page(user_id, limit=1, cursor=str(first["next_cursor"]))
    assert first["items"] + second["items"] == whole["items"]
    assert second["next_cursor"] is None
    stranger = UUID("01900000-0000-7000-8000-000000000001")
    assert (await page(stranger))["items"] == []
    refused = await billing.client.get(
        "/internal/invoices?cursor=%00", headers=service_headers("billing", user_id=user_id)
    )
    assert refused.status_code == 422


async def test_return_addresses_stay_on_the_frontend(billing: Billing, user_id: UUID) -> None:
    for path in ("https://evil.example", "//evil.example", "/\\evil.example", "evil", "/a/../../b", "/a b", "/a\n"):
        answer = await billing.checkout(user_id, success_path=path)
        assert answer.status_code == 422, path
    opened = await billing.checkout(user_id, success_path="/welcome?plan=pro")
    session = await billing.stripe.api("GET", f"checkout/sessions/{opened.json()['id']}")
    assert session["success_url"] == "https://app.example.com/welcome?plan=pro"


async def test_only_what_is_for_sale_is_sold(billing: Billing, user_id: UUID) -> None:
    for tier in ("free", "platinum"):
        answer = await billing.checkout(user_id, tier)
        assert (answer.status_code, answer.json()["code"]) == (422, "billing.tier_not_for_sale")
