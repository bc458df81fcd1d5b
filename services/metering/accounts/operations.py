"""Writes of accounts: entitlements as they change, thresholds as they are reached, erasure."""

from collections.abc import Mapping
from uuid import UUID

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.gateway import EntitlementsChanged
from libs.common.events.metering import ThresholdReached, UserErasedByMetering
from libs.common.plans import Plans
from services.metering.accounts import domain, queries
from services.metering.accounts.domain import Account
from services.metering.domain import Period


async def change_entitlements(conn: Connection, event: EntitlementsChanged) -> None:
    await queries.upsert_entitlements(conn, event)


async def thresholds_told(
    conn: Connection, plans: Plans, account: Account, *, user_id: str, period: Period, used: Mapping[str, int]
) -> list[ThresholdReached]:
    """Mark what is reached and return what has not been told before in this period, for the caller's outbox."""
    limits = domain.limits_of(plans, account)
    percents = domain.thresholds_of(plans, account)
    return [
        ThresholdReached(
            user_id=UUID(user_id),
            metric=metric,
            percent=percent,
            used=amount,
            limit=limits[metric],
            period_end=period.end,
        )
        for metric, amount in used.items()
        for percent in domain.thresholds_reached(amount, limits.get(metric), percents)
        if await queries.insert_threshold(
            conn, user_id=user_id, metric=metric, period_start=period.start, percent=percent
        )
    ]


async def erase_user(conn: Connection, *, user_id: UUID) -> None:
    """Erase what metering knows of the user; the ledger stays, under a pseudonym nobody can lead back."""
    await queries.erase_user(conn, str(user_id))
    await outbox.add(conn, UserErasedByMetering(user_id=user_id))
