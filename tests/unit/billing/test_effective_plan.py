"""The plan that follows from subscriptions."""

import itertools
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from libs.common.plans import load_plans
from services.billing.domain import EffectivePlan, Price, Subscription, SubscriptionStatus, effective_plan, tier_of

NOW: Final = datetime(2026, 11, 23, 12, tzinfo=UTC)
GRACE: Final = timedelta(days=7)
PLANS: Final = load_plans()
README: Final = Path(__file__).parents[3] / "services" / "billing" / "README.md"


def a_subscription(**changes: Any) -> Subscription:
    facts: dict[str, Any] = {
        "id": "sub_1",
        "status": SubscriptionStatus.ACTIVE,
        "tier": "pro",
        "current_period_start": NOW - timedelta(days=10),
        "current_period_end": NOW + timedelta(days=20),
        "created_at": NOW - timedelta(days=10),
        "stripe_customer_id": "cus_1",
    }
    return Subscription(**{**facts, **changes})


def plan_of(*subscriptions: Subscription, now: datetime = NOW) -> EffectivePlan:
    return effective_plan(subscriptions, now=now, grace=GRACE, plans=PLANS)


def table_in_the_readme() -> dict[str, tuple[str, str]]:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \| `(\w+)` \|", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {status: (tier, shown) for status, tier, shown in rows}


def test_the_readme_has_every_status_of_stripe() -> None:
    assert set(table_in_the_readme()) == set(SubscriptionStatus)


@pytest.mark.parametrize("status", list(SubscriptionStatus))
def test_each_status_gives_what_the_readme_says(status: SubscriptionStatus) -> None:
    tier, shown = table_in_the_readme()[status]
    plan = plan_of(a_subscription(status=status, past_due_since=NOW - timedelta(days=1)))
    assert plan.status == shown
    assert plan.tier == ("pro" if tier == "its" else "free")


def test_a_user_without_subscriptions_is_free_and_inactive() -> None:
    assert plan_of() == EffectivePlan(tier="free", status="inactive")


def test_past_due_keeps_the_tier_for_the_grace_and_not_a_moment_longer() -> None:
    owing = a_subscription(status=SubscriptionStatus.PAST_DUE, past_due_since=NOW)
    within = plan_of(owing, now=NOW + GRACE - timedelta(seconds=1))
    assert (within.tier, within.status, within.review_at) == ("pro", "past_due", NOW + GRACE)
    after = plan_of(owing, now=NOW + GRACE)
    assert (after.tier, after.status, after.review_at) == ("free", "past_due", None)


def test_cancelling_at_the_period_s_end_keeps_the_tier_until_then() -> None:
    end = NOW + timedelta(days=20)
    ending = a_subscription(cancel_at_period_end=True)
    before = plan_of(ending, now=end - timedelta(seconds=1))
    assert (before.tier, before.status, before.cancel_at, before.review_at) == ("pro", "active", end, end)
    assert (plan_of(ending, now=end).tier, plan_of(ending, now=end).status) == ("free", "canceled")


def test_cancelling_at_an_instant_keeps_the_tier_until_that_instant() -> None:
    at = NOW + timedelta(days=3)
    ending = a_subscription(cancel_at=at)
    assert plan_of(ending).review_at == at
    assert plan_of(ending, now=at).tier == "free"


def test_the_highest_of_several_subscriptions_counts_in_any_order() -> None:
    subscriptions = [
        a_subscription(id="sub_1", tier="pro"),
        a_subscription(id="sub_2", tier="enterprise", status=SubscriptionStatus.CANCELED),
        a_subscription(id="sub_3", tier="pro+", status=SubscriptionStatus.TRIALING),
        a_subscription(id="sub_4", tier=None),
    ]
    plans = {plan_of(*order) for order in itertools.permutations(subscriptions)}
    assert {(plan.tier, plan.status) for plan in plans} == {("pro+", "trialing")}
    assert len(plans) == 1


def test_when_the_higher_ends_the_lower_takes_over() -> None:
    at = NOW + timedelta(days=1)
    both = [a_subscription(id="sub_1"), a_subscription(id="sub_2", tier="pro+", cancel_at=at)]
    assert plan_of(*both).review_at == at
    assert plan_of(*both, now=at).tier == "pro"


def test_a_price_of_no_plan_gives_no_tier_and_is_recorded() -> None:
    assert plan_of(a_subscription(tier=None)).tier == "free"
    price, tier = tier_of([Price(id="price_x", lookup_key="unheard_of")], PLANS)
    assert (price, tier) == (Price(id="price_x", lookup_key="unheard_of"), None)


def test_the_highest_item_of_a_subscription_decides_its_tier() -> None:
    pro, top = Price(id="price_1", lookup_key="pro_monthly"), Price(id="price_2", lookup_key="enterprise_monthly")
    assert tier_of([pro, top], PLANS) == (top, "enterprise")
    assert tier_of([top, pro], PLANS) == (top, "enterprise")


def test_a_price_whose_lookup_key_moved_on_keeps_its_tier_by_metadata() -> None:
    assert tier_of([Price(id="price_old", tier_hint="pro")], PLANS)[1] == "pro"
    assert tier_of([Price(id="price_old", tier_hint="emperor")], PLANS)[1] is None
