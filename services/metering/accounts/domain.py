"""What follows from a plan and a user's own overrides: limits, features, thresholds. Pure.

Overrides stand in `user_profiles.premium_features`, which travels in `entitlements_changed`: `limits` and `thresholds`
are metering's own, `admin` is no feature, and any other key is a feature of that name for this user alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, cast

from libs.common.plans import Plans
from services.metering.domain import Period

_NO_FEATURES: Final = frozenset({"admin", "limits", "thresholds"})
MAX_PERCENT: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Whose quota it is, and the period of the instant it was read at, by the database's clock.

    `erased_as` is the pseudonym of a deleted account in the ledger.
    """

    period: Period
    read_at: datetime
    tier: str = "free"
    status: str = "active"
    features: Mapping[str, Any] = field(default_factory=dict[str, Any])
    erased_as: str | None = None
    has_grants: bool = False


def limits_of(plans: Plans, account: Account) -> Mapping[str, int]:
    """What the user may use in a period; a metric without a limit is unlimited. Grants come on top.

    An override is a whole number, or null for unlimited; what is neither is left out, so that a slip of an operator's
    hand leaves the plan's limit in force.
    """
    overrides = account.features.get("limits")
    if not overrides:
        return plans.tier(account.tier).limits
    limits = dict(plans.tier(account.tier).limits)
    for metric, limit in (cast("dict[str, Any]", overrides) if isinstance(overrides, dict) else {}).items():
        if limit is None:
            limits.pop(metric, None)
        elif isinstance(limit, int) and not isinstance(limit, bool) and limit >= 0:
            limits[metric] = limit
    return limits


def features_of(plans: Plans, account: Account) -> Mapping[str, Any]:
    own = {name: value for name, value in account.features.items() if name not in _NO_FEATURES}
    return {**plans.tier(account.tier).features, **own}


def missing_feature(plans: Plans, account: Account, wanted: Sequence[str]) -> str | None:
    """The first wanted feature that the user does not have: unknown, false, zero and empty all mean no."""
    if not wanted:
        return None
    features = features_of(plans, account)
    return next((name for name in wanted if not features.get(name)), None)


def thresholds_of(plans: Plans, account: Account) -> Sequence[int]:
    """Percentages of a limit to tell the user of: the tier's, and the user's own."""
    own = account.features.get("thresholds")
    if not own:
        return plans.tier(account.tier).thresholds
    custom = {
        percent
        for percent in (cast("list[Any]", own) if isinstance(own, list) else [])
        if isinstance(percent, int) and not isinstance(percent, bool) and 0 < percent <= MAX_PERCENT
    }
    return sorted({*plans.tier(account.tier).thresholds, *custom})


def thresholds_reached(used: int, limit: int | None, percents: Sequence[int]) -> Sequence[int]:
    """The percentages of the limit that settled usage has reached."""
    return [percent for percent in percents if limit and used * 100 >= limit * percent]
