"""Whatever the order and number of events, and whenever workers die, the tables are Stripe's final objects."""

import pytest

from libs.common.database import connect
from tests.harness.convergence import converge
from tests.harness.database import TestDatabase


@pytest.mark.parametrize("seed", [1, 2])
async def test_shuffled_and_repeated_events_with_kills_end_in_stripe_s_objects(
    test_database: TestDatabase, seed: int
) -> None:
    async with connect(test_database.url("venture_billing"), application_name="test") as database:
        deaths = await converge(database, test_database, lives=60, seed=seed)
    assert deaths > 0, "no worker was killed"
