"""What the gateway's events do here, through the broker: adopting a customer, erasing a user."""

from uuid import UUID

from libs.common import outbox
from libs.common.broker import open_publisher
from libs.common.database import connect
from tests.harness.billing import Billing
from tests.harness.patience import eventually
from tests.harness.services import Place


async def relay_gateway(place: Place) -> None:
    """Send what triggers wrote into the gateway's outbox, as the gateway would."""
    async with (
        connect(place.database.url("venture_gateway"), application_name="test", min_size=1) as database,
        open_publisher(place.amqp_url("gateway"), name="test") as publisher,
    ):
        await outbox.Relay(database, publisher, source="gateway").run_once()


async def a_user(billing: Billing, user_id: UUID) -> None:
    await billing.database.execute("INSERT INTO auth.users (id, email) VALUES ($1, 'someone@example.com')", user_id)


async def is_consuming(billing: Billing) -> None:
    async def probe() -> bool:
        body = (await billing.client.get("/health/ready")).json()
        return next(check["status"] for check in body["checks"] if check["name"] == "queues_with_consumer") == "ok"

    await eventually(probe)


async def test_a_customer_an_operator_wrote_into_the_profile_is_adopted_and_looked_up(
    billing: Billing, place: Place, user_id: UUID
) -> None:
    await is_consuming(billing)
    customer = await billing.stripe.api("POST", "customers", email="someone@example.com")
    method = await billing.stripe.api("POST", "payment_methods/pm_card_visa/attach", customer=customer["id"])
    (price,) = (await billing.stripe.api("GET", "prices", **{"lookup_keys[0]": "pro_plus_monthly"}))["data"]
    await billing.stripe.api(
        "POST",
        "subscriptions",
        **{"customer": customer["id"], "items[0][price]": price["id"], "default_payment_method": method["id"]},
    )
    await a_user(billing, user_id)
    await billing.database.execute(
        "UPDATE user_profiles SET stripe_customer_id = $2 WHERE user_id = $1", user_id, customer["id"]
    )
    await relay_gateway(place)
    await billing.plan_becomes(user_id, "pro+", "active")


async def test_a_customer_that_does_not_exist_is_adopted_by_nobody_and_tells_nothing(
    billing: Billing, place: Place, user_id: UUID
) -> None:
    await is_consuming(billing)
    await a_user(billing, user_id)
    await billing.database.execute(
        "UPDATE user_profiles SET subscription_tier = 'pro', stripe_customer_id = 'cus_xxxxx' WHERE user_id = $1",
        user_id,
    )
    await relay_gateway(place)

    async def looked_up() -> bool:
        return await billing.database.fetchval(
            "SELECT done = wanted FROM billing.refreshes WHERE object_id = 'cus_xxxxx'"
        )

    await eventually(looked_up)
    assert await billing.published("billing.subscription_changed.v1", user_id) == []
    assert (await billing.checkout(user_id)).status_code == 201


async def test_a_plan_an_operator_gave_by_hand_is_reported_by_the_comparison_and_stays(
    billing: Billing, place: Place, user_id: UUID
) -> None:
    await is_consuming(billing)
    await a_user(billing, user_id)
    await billing.database.execute(
        """
        UPDATE user_profiles
        SET subscription_status = 'active', subscription_tier = 'pro', stripe_customer_id = 'cus_xxxxx'
        WHERE user_id = $1
        """,
        user_id,
    )
    await relay_gateway(place)

    async def noted() -> bool:
        return await billing.database.fetchval("SELECT EXISTS (SELECT FROM billing.profiles WHERE tier = 'pro')")

    await eventually(noted)
    await billing.database.execute("UPDATE billing.accounts SET updated_at = now() - interval '1 minute'")
    drift = (await billing.reconcile(fix=True))["drift"]
    (row,) = [one for one in drift if one["what"] == "profile"]
    assert (row["object_id"], row["ours"]["tier"], row["theirs"]["tier"]) == (f"user:{user_id}", "pro", "free")
    assert await billing.database.fetchval("SELECT subscription_tier FROM user_profiles") == "pro"


async def test_deleting_the_user_s_row_erases_the_user(billing: Billing, place: Place, user_id: UUID) -> None:
    await is_consuming(billing)
    await a_user(billing, user_id)
    session = await billing.buy(user_id)
    await billing.plan_becomes(user_id, "pro", "active")
    await billing.database.execute("DELETE FROM auth.users WHERE id = $1", user_id)
    await relay_gateway(place)

    async def erased() -> bool:
        return len(await billing.published("billing.user_erased.v1", user_id)) == 1

    await eventually(erased)
    assert (await billing.stripe.api("GET", f"customers/{session['customer']}"))["deleted"] is True
