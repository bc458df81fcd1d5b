"""Writes of grants: making and voiding them, and what settled usage spends of them. Counters are locked before."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from uuid import UUID

from libs.common.database import Connection
from libs.common.errors import Invalid
from services.metering.domain import Amounts, Period
from services.metering.grants import domain, queries
from services.metering.grants.domain import Credits, Grant, GrantConflict, GrantNotFound


async def add_grant(
    conn: Connection, *, grant_id: UUID, user_id: UUID, metric: str, amount: int, priority: int,
    expires_at: datetime | None, reason: str, granted_by: str,
) -> None:  # fmt: skip
    """Grant credits; the same id again changes nothing.

    Raises GrantConflict if it names another grant, Invalid for one that has expired before it is given.
    """
    known = await queries.find_grant(conn, grant_id)
    if known is None:
        if expires_at is not None and expires_at <= await conn.fetchval("SELECT now()"):
            raise Invalid("This grant would have expired before it is given.")
        if await queries.insert_grant(
            conn,
            grant_id=grant_id,
            user_id=str(user_id),
            metric=metric,
            amount=amount,
            priority=priority,
            expires_at=expires_at,
            reason=reason,
            granted_by=granted_by,
        ):
            return
        known = await queries.find_grant(conn, grant_id)  # somebody else's of this moment
    same = (str(user_id), metric, amount, priority, expires_at)
    if known is None or same != tuple(
        known[name] for name in ("user_id", "metric_type", "amount", "priority", "expires_at")
    ):
        raise GrantConflict("This id already names another grant.")


async def void_grant(conn: Connection, grant_id: UUID) -> None:
    if not await queries.void_grant(conn, grant_id):
        raise GrantNotFound("There is no such grant.")


async def credits_of(
    conn: Connection, *, user_id: str, limits: Mapping[str, int], metrics: Iterable[str], period: Period, at: datetime
) -> dict[str, Credits]:
    """What grants add to the limits of these metrics in a period, with the grants locked until the commit."""
    limited = {metric: limits[metric] for metric in sorted(metrics) if metric in limits}
    if not limited:
        return {}
    grants = await queries.lock_grants(conn, user_id=user_id, metrics=list(limited))
    uses = await queries.find_uses(conn, user_id=user_id, metrics=list(limited), period_start=period.start)
    promised = await queries.find_promised(conn, user_id=user_id, limits=limited, period_start=period.start)
    return {
        metric: Credits(
            available=_left(grants[metric], at), spent=sum(uses[metric].values()), promised=promised.get(metric, 0)
        )
        for metric in limited
    }


async def visible_credits(
    conn: Connection, *, user_id: str, limits: Mapping[str, int], period: Period
) -> dict[str, Credits]:
    """The same to look at, as the user sees it and without a lock."""
    grants = await queries.find_live(conn, user_id=user_id)
    limited = {metric: limits[metric] for metric in grants if metric in limits}
    uses = await queries.find_uses(conn, user_id=user_id, metrics=list(limited), period_start=period.start)
    promised = await queries.find_promised(conn, user_id=user_id, limits=limited, period_start=period.start)
    return {
        metric: Credits(available=grants[metric], spent=sum(uses[metric].values()), promised=promised.get(metric, 0))
        for metric in limited
    }


async def spend_credits(
    conn: Connection,
    *,
    user_id: str,
    limits: Mapping[str, int],
    booked: Amounts,
    used: Amounts,
    period: Period,
    at: datetime,
) -> None:
    """Charge to grants what the plan does not cover of amounts just booked, or give back what was just refunded.

    `used` are the counters after the booking. `at` is when the usage was promised: a grant that expired since counts.
    """
    metrics = sorted(metric for metric, amount in booked.items() if amount and metric in limits)
    if not metrics:
        return
    grants = await queries.lock_grants(conn, user_id=user_id, metrics=metrics)
    uses = await queries.find_uses(conn, user_id=user_id, metrics=metrics, period_start=period.start)
    for metric in metrics:
        amount, spent = booked[metric], sum(uses[metric].values())
        if amount > 0:
            debt = domain.owed(limit=limits[metric], used_before=used[metric] - amount, amount=amount, spent=spent)
            changes = domain.spend(grants[metric], debt, at=at)
        else:
            changes = domain.give_back(grants[metric], uses[metric], -amount)
        if changes:
            await queries.change_uses(conn, changes, user_id=user_id, metric=metric, period_start=period.start)


def _left(grants: Iterable[Grant], at: datetime) -> int:
    return sum(grant.left for grant in grants if grant.is_live(at))
