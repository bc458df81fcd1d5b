"""Our calls and our webhook against a Stripe that shares no line with us, as far as it goes: its shapes are of 2017.

Here, among what is asked for by name, because it is installed from the network and listens on every interface.
"""

from pathlib import Path

from libs.common.ids import new_id
from services.billing.settings import Settings
from services.billing.stripe_payments import open_stripe
from services.billing.wiring import build
from tests.harness.localstripe import LocalStripe, local_stripe
from tests.harness.patience import eventually
from tests.harness.services import Place, run_service
from tests.harness.stripe_emulator import SECRET_KEY, new_webhook_secret


async def subscribe(stripe: LocalStripe, customer_id: str) -> str:
    method = await stripe.api("POST", "/v1/payment_methods/pm_card_visa/attach", customer=customer_id)
    default = {"invoice_settings[default_payment_method]": method["id"]}
    await stripe.api("POST", f"/v1/customers/{customer_id}", **default)
    plan = {"id": "pro", "amount": "2900", "currency": "usd", "interval": "month", "product[name]": "Pro"}
    await stripe.api("POST", "/v1/plans", **plan)
    made = await stripe.api("POST", "/v1/subscriptions", **{"customer": customer_id, "items[0][plan]": "pro"})
    return made["id"]


async def test_an_independent_stripe_takes_our_calls_and_its_webhooks_are_taken(place: Place, tmp_path: Path) -> None:
    secret, user_id = new_webhook_secret(), new_id()
    async with local_stripe(tmp_path / "environment") as stripe:
        settings = place.settings_for(
            Settings,
            "billing",
            stripe_secret_key=SECRET_KEY,
            stripe_webhook_secret=secret,
            stripe_api_base=stripe.url,
        )
        async with (
            run_service(build(settings)) as billing,
            open_stripe(SECRET_KEY, api_base=stripe.url, calls_per_s=500) as payments,
        ):
            await stripe.api(
                "POST", "/_config/webhooks/billing", url=f"{billing.base_url}/webhooks/stripe", secret=secret
            )
            customer_id = await payments.create_customer(user_id=user_id, email="a@example.com", idempotency_key="a")
            customer = await payments.fetch_customer(customer_id)
            assert customer is not None
            assert customer.claimed_user_id == user_id
            assert [one.id for one in (await payments.list_customers(after=None)).items] == [customer_id]
            subscription_id = await subscribe(stripe, customer_id)
            assert list(await payments.find_subscription_ids(customer_id)) == [subscription_id]
            (invoice,) = (await stripe.api("GET", "/v1/invoices", customer=customer_id))["data"]
            read = await payments.fetch_invoice(invoice["id"])
            assert read is not None
            assert (read.status, read.amount_paid_minor, read.stripe_subscription_id) == ("paid", 2900, subscription_id)

            async def delivered() -> bool:
                found = await place.database.fetch("SELECT DISTINCT type FROM billing.stripe_events")
                wanted = {"customer.created", "customer.subscription.created", "invoice.payment_succeeded"}
                return wanted <= {row["type"] for row in found}

            await eventually(delivered, within_s=20)

            async def stored() -> bool:
                return await place.database.fetchval(
                    "SELECT EXISTS (SELECT FROM billing.invoices WHERE user_id = $1 AND status = 'paid')", user_id
                )

            await eventually(stored, within_s=20)
            await payments.cancel_subscription(subscription_id)
            await payments.cancel_subscription(subscription_id)
            ended = await stripe.api("GET", f"/v1/subscriptions/{subscription_id}")
            assert ended["status"] == "canceled"
            await payments.delete_customer(customer_id)
            assert (await payments.list_customers(after=None)).items == []
