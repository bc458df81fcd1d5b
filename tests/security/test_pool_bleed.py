"""One connection serves many users, one after another: nothing of one may be left for the next."""

import pytest

from libs.common import database as db
from tests.harness.bleed import interleave
from tests.harness.database import TestDatabase


async def test_no_request_sees_another_users_rows_whatever_broke_before_it(test_database: TestDatabase) -> None:
    tally = await interleave(test_database, requests=1_000, users=50, seed=7)
    assert not tally.deviations
    assert tally.completed + tally.broken + tally.cancelled == tally.asked == 1_000
    assert min(tally.completed, tally.broken, tally.cancelled) > 20


@pytest.mark.parametrize("role", ["venture_gateway", "venture_billing", "venture_metering", "venture_agents"])
async def test_a_pooled_connection_bounds_what_may_go_wrong_on_it(test_database: TestDatabase, role: str) -> None:
    async with (
        db.connect(test_database.url(role), application_name="test") as database,
        database.transaction() as conn,
    ):
        bounds = await conn.fetchrow(
            """
            SELECT current_setting('statement_timeout') AS statement, current_setting('lock_timeout') AS lock,
                   current_setting('idle_in_transaction_session_timeout') AS idle
            """
        )
    assert bounds is not None
    assert {name: bool(value) and value != "0" for name, value in bounds.items()} == dict.fromkeys(bounds.keys(), True)
