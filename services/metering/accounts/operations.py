"""Writes of accounts: entitlements as they change, thresholds as they are reached, erasure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.gateway import EntitlementsChanged
from libs.common.events.metering import ThresholdReached, UserErasedByMetering
from libs.common.plans import Plans
from services.metering.accounts import domain, queries
from services.metering.accounts.domain import Account
from services.metering.accounts.queries import Threshold
from services.metering.domain import Period


async def change_entitlements(conn: Connection, event: EntitlementsChanged) -> None:
    await queries.upsert_entitlements(conn, event)


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What a user has used of some metrics in a period."""

    user_id: str
    account: Account
    period: Period
    used: Mapping[str, int]


async def thresholds_told(conn: Connection, plans: Plans, standings: Sequence[Standing]) -> list[ThresholdReached]:
    """Mark what is reached and return what has not been told before in its period, for the caller's outbox."""
    reached: dict[Threshold, tuple[Standing, int]] = {}
    for one in standings:
        limits = domain.limits_of(plans, one.account)
        percents = domain.thresholds_of(plans, one.account)
        for metric, used in one.used.items():
            limit = limits.get(metric)
            for percent in domain.thresholds_reached(used, limit, percents):
                reached[one.user_id, metric, one.period.start, percent] = one, limit or 0
    new = await queries.insert_thresholds(conn, list(reached)) if reached else set[Threshold]()
    return [
        ThresholdReached(
            user_id=UUID(one.user_id),
            metric=threshold[1],
            percent=threshold[3],
            used=one.used[threshold[1]],
            limit=limit,
            period_end=one.period.end,
        )
        for threshold, (one, limit) in reached.items()
        if threshold in new
    ]


async def erase_user(conn: Connection, *, user_id: UUID) -> None:
    """Erase what metering knows of the user; the ledger stays, under a pseudonym nobody can lead back."""
    await queries.erase_user(conn, str(user_id))
    await outbox.add(conn, UserErasedByMetering(user_id=user_id))
