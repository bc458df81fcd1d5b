"""50,000 deliveries of 1,000 events, 64 at once, a tenth forged: 1,000 effects, and every answer in time."""

import os
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from tests.harness.billing import Billing, open_billing
from tests.harness.forgery import stormy_deliveries
from tests.harness.services import Place
from tests.harness.storm import storm


@pytest.fixture
async def quiet_billing(place: Place, tmp_path: Path) -> AsyncGenerator[Billing, None]:
    async with open_billing(place, tmp_path / "stripe.db", delivers=False) as opened:
        yield opened


async def test_fifty_thousand_deliveries_are_a_thousand_effects(
    quiet_billing: Billing, request: pytest.FixtureRequest
) -> None:
    billing = quiet_billing
    deliveries = stormy_deliveries(
        billing, events=1_000, deliveries=50_000, seed=int(request.config.getoption("--seed") or 0)
    )
    outcome = await storm(billing.running.base_url, deliveries, at_once=64)
    forged = sum(is_forged for _, is_forged in deliveries)
    sys.stdout.write(
        f"{outcome.per_s:.0f}/s, p50 {outcome.percentile_ms(50):.0f} ms, p99 {outcome.percentile_ms(99):.0f} ms, "
        f"max {outcome.percentile_ms(100):.0f} ms, {forged} forged; client and service in one process, "
        f"load {os.getloadavg()[0]:.1f}\n"
    )
    assert outcome.forged == {400: forged}
    assert outcome.genuine == {200: len(deliveries) - forged}
    assert await billing.database.fetchval("SELECT count(*) FROM billing.stripe_events") == 1_000
    await billing.all_handled()
    assert await billing.database.fetchval("SELECT sum(wanted) FROM billing.refreshes") == 1_000
    assert await billing.database.fetchval("SELECT count(*) FROM billing.stripe_events WHERE id LIKE '%forged%'") == 0
