"""Ten thousand lives of subscriptions, their events in ten thousand orders, with workers dying all the while."""

import random
import sys

import pytest

from libs.common.database import connect
from tests.harness.convergence import converge
from tests.harness.database import TestDatabase

ROUNDS = 20
LIVES = 500


async def test_ten_thousand_orders_end_in_stripe_s_objects(
    test_database: TestDatabase, request: pytest.FixtureRequest
) -> None:
    seed = int(request.config.getoption("--seed") or 0) or random.SystemRandom().randrange(1, 2**31)
    deaths = 0
    async with connect(test_database.url("venture_billing"), application_name="test") as database:
        for number in range(ROUNDS):
            await test_database.execute(
                "TRUNCATE billing.subscriptions, billing.invoices, billing.customers, billing.accounts,"
                " billing.stripe_events, billing.refreshes, billing.outbox"
            )
            deaths += await converge(database, test_database, lives=LIVES, seed=seed + number)
    sys.stdout.write(f"{ROUNDS * LIVES} lives, {deaths} kills, --seed {seed}\n")
