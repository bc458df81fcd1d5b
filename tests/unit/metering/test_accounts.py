"""What follows from a plan and a user's own overrides."""

from datetime import UTC, datetime
from typing import Any

import pytest

from libs.common.plans import load_plans
from services.metering.accounts import domain
from services.metering.accounts.domain import Account
from services.metering.domain import Period

PLANS = load_plans()
NOW = datetime(2026, 11, 20, tzinfo=UTC)
PERIOD = Period(start=datetime(2026, 11, 1, tzinfo=UTC), end=datetime(2026, 12, 1, tzinfo=UTC))


def an_account(tier: str = "free", **features: Any) -> Account:
    return Account(period=PERIOD, read_at=NOW, tier=tier, features=features)


@pytest.mark.parametrize(
    ("used", "limit", "reached"),
    [
        (79, 100, []),
        (80, 100, [80]),
        (99, 100, [80]),
        (100, 100, [80, 100]),
        (5, 0, []),
        (10**9, None, []),
        (4, 5, [80]),
    ],
)
def test_thresholds_are_reached_at_80_and_100_percent(used: int, limit: int | None, reached: list[int]) -> None:
    assert list(domain.thresholds_reached(used, limit, (80, 100))) == reached


def test_an_override_replaces_the_plans_limit_or_lifts_it() -> None:
    limits = domain.limits_of(PLANS, an_account(limits={"runs": 7, "tokens": None, "api_calls": 3}))
    assert (limits["runs"], limits.get("tokens"), limits["api_calls"]) == (7, None, 3)
    assert limits["templates"] == PLANS.tier("free").limits["templates"]


@pytest.mark.parametrize("slip", [{"runs": "7"}, {"runs": -1}, {"runs": True}, {"runs": 1.5}, ["runs"], 7, None])
def test_a_slip_in_an_override_leaves_the_plans_limit(slip: Any) -> None:
    assert domain.limits_of(PLANS, an_account(limits=slip)) == PLANS.tier("free").limits


def test_features_come_from_the_tier_and_the_users_own_go_first() -> None:
    assert domain.missing_feature(PLANS, an_account("pro"), ["auto_suggest"]) is None
    assert domain.missing_feature(PLANS, an_account("free"), ["auto_suggest"]) == "auto_suggest"
    assert domain.missing_feature(PLANS, an_account("free", auto_suggest=True), ["auto_suggest"]) is None
    assert domain.missing_feature(PLANS, an_account("pro", auto_suggest=False), ["auto_suggest"]) == "auto_suggest"
    assert domain.features_of(PLANS, an_account("free", admin=True, limits={})) == PLANS.tier("free").features


def test_thresholds_are_the_tiers_and_the_users_own() -> None:
    assert domain.thresholds_of(PLANS, an_account(thresholds=[50, 95, 0, "9", True])) == [50, 80, 95, 100]


def test_a_tier_nobody_knows_is_the_free_one() -> None:
    assert domain.limits_of(PLANS, an_account("gold")) == PLANS.tier("free").limits
