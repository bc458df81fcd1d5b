"""A limit is never passed by those who ask at once; and the scenario that says so notices a quota that looks first."""

import secrets

import pytest

from tests.faults.quotas import CHECK_THEN_ACT, ask_at_once
from tests.harness.database import TestDatabase

SEEDS: tuple[int, ...] = (11, 22, 33)


@pytest.mark.smoke
async def test_a_limit_is_never_passed_by_those_who_ask_at_once(
    test_database: TestDatabase, request: pytest.FixtureRequest
) -> None:
    verdict = await ask_at_once(test_database, seed=request.config.getoption("--seed") or secrets.randbelow(1_000_000))
    print(verdict)
    assert verdict.is_clean, str(verdict)
    assert verdict.ack == verdict.notes["limit"] * verdict.notes["users"]


async def test_the_scenario_notices_a_quota_that_checks_and_then_acts(test_database: TestDatabase) -> None:
    for seed in SEEDS:
        verdict = await ask_at_once(test_database, seed=seed, control=CHECK_THEN_ACT)
        print(verdict)
        if verdict.overshoot:
            return
    raise AssertionError("three seeds, and nothing was noticed")
