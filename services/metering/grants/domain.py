"""In which order credits are used, and what they add to a limit. Pure.

The plan's own quota is used first, because it is gone at the period's end anyway; then grants by priority (the lowest
number first), then the one that expires first, then the oldest. What a refund gives back goes the other way round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from libs.common.errors import Conflict, NotFound

NEVER: Final = datetime.max.replace(tzinfo=UTC)
"""When a grant expires that lasts."""


class GrantNotFound(NotFound):
    code = "metering.grant_not_found"


class GrantConflict(Conflict):
    """The id already names another grant."""

    code = "metering.grant_conflict"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    id: UUID
    amount: int
    used: int
    priority: int
    starts_at: datetime
    expires_at: datetime
    created_at: datetime

    @property
    def left(self) -> int:
        return self.amount - self.used

    def is_live(self, at: datetime) -> bool:
        return self.starts_at <= at < self.expires_at


@dataclass(frozen=True, slots=True, kw_only=True)
class Credits:
    """Credits of one metric. `spent` went into the period in question; `promised` to open holds of other periods."""

    available: int = 0
    spent: int = 0
    promised: int = 0

    def ceiling(self, *, limit: int, used: int) -> int:
        """The limit with credits on top. What a smaller plan left above its limit is past, and uses up no credit."""
        return max(limit + self.spent, used) + max(0, self.available - self.promised)


def in_order(grants: Sequence[Grant]) -> list[Grant]:
    return sorted(grants, key=lambda grant: (grant.priority, grant.expires_at, grant.created_at, grant.id))


def owed(*, limit: int, used_before: int, amount: int, spent: int) -> int:
    """How much of an amount the plan's own quota does not cover, given what credits have covered before."""
    left_of_plan = max(0, limit - (used_before - spent))
    return max(0, amount - left_of_plan)


def spend(grants: Sequence[Grant], amount: int, *, at: datetime) -> dict[UUID, int]:
    """What is taken from which grant; less than the amount if they do not cover it."""
    taken: dict[UUID, int] = {}
    for grant in in_order([grant for grant in grants if grant.is_live(at) and grant.left]):
        if amount <= 0:
            break
        taken[grant.id] = min(grant.left, amount)
        amount -= taken[grant.id]
    return taken


def give_back(grants: Sequence[Grant], uses: dict[UUID, int], amount: int) -> dict[UUID, int]:
    """What goes back to which grant of what it gave to the period, the last used first. Amounts are negative."""
    returned: dict[UUID, int] = {}
    for grant in reversed(in_order(grants)):
        back = min(uses.get(grant.id, 0), amount)
        if back > 0:
            returned[grant.id] = -back
            amount -= back
    return returned
