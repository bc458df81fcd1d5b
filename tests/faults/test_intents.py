"""A thousand intents while Stripe answers 500 and 429 and loses answers after applying: a thousand objects."""

from datetime import timedelta
from pathlib import Path

from libs.common.database import connect
from libs.common.ids import new_id
from libs.common.plans import load_plans
from services.billing.checkout import Desk
from services.billing.domain import Rules
from services.billing.stripe_payments import open_stripe
from tests.harness.database import TestDatabase
from tests.harness.intents import buy_all, count_objects, plan_faults
from tests.harness.stripe_emulator import SECRET_KEY, free_port, new_webhook_secret, stripe_emulator

INTENTS = 1_000


async def test_a_thousand_intents_are_a_thousand_objects(test_database: TestDatabase, tmp_path: Path) -> None:
    rules = Rules(plans=load_plans(), grace=timedelta(days=7))
    async with (
        connect(test_database.url("venture_billing"), application_name="test") as database,
        stripe_emulator(tmp_path / "stripe.db", port=free_port(), webhook_secret=new_webhook_secret()) as stripe,
        open_stripe(SECRET_KEY, api_base=stripe.url, calls_per_s=200) as payments,
    ):
        await plan_faults(stripe, rounds=20, hangs=20)
        await buy_all(Desk(database, payments, rules), [new_id() for _ in range(INTENTS)])
        assert await count_objects(stripe, "customers") == INTENTS
        assert await count_objects(stripe, "checkout/sessions") == INTENTS
        assert await test_database.fetchval("SELECT count(*) FROM billing.checkouts WHERE status = 'open'") == INTENTS
