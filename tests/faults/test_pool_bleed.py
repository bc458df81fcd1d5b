"""The big version of tests/security/test_pool_bleed.py."""

import pytest

from tests.harness.bleed import interleave
from tests.harness.database import TestDatabase


async def test_ten_thousand_requests_of_fifty_users_over_five_connections(
    test_database: TestDatabase, request: pytest.FixtureRequest
) -> None:
    seed: int = request.config.getoption("--seed") or 20260101
    tally = await interleave(test_database, requests=10_000, users=50, seed=seed)
    print(
        f"\nseed={seed} asked={tally.asked} completed={tally.completed} broken={tally.broken} "
        f"cancelled={tally.cancelled} deviations={len(tally.deviations)}"
    )
    assert not tally.deviations
