"""A storm of repeated, disordered and forged deliveries leaves each event once, and of forgeries nothing."""

from tests.harness.billing import Billing
from tests.harness.forgery import stormy_deliveries
from tests.harness.storm import storm


async def test_a_storm_has_the_effects_of_its_events(quiet_billing: Billing) -> None:
    billing = quiet_billing
    deliveries = stormy_deliveries(billing, events=100, deliveries=1_500, seed=1)
    outcome = await storm(billing.running.base_url, deliveries, at_once=64)
    forged = sum(is_forged for _, is_forged in deliveries)
    assert outcome.forged == {400: forged}
    assert outcome.genuine == {200: len(deliveries) - forged}
    stored = await billing.database.fetch("SELECT id FROM billing.stripe_events")
    assert {row["id"] for row in stored} == {f"evt_{number}" for number in range(100)}
    await billing.all_handled()
    wanted = await billing.database.fetchval("SELECT sum(wanted) FROM billing.refreshes")
    assert wanted == 100, "each event asks once for its object"
