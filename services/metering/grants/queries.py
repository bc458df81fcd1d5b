"""SQL of grants. Lock order: a user's counters first, then the user's grants."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from libs.common.database import Connection, Record
from services.metering.grants.domain import NEVER, Grant


async def lock_grants(conn: Connection, *, user_id: str, metrics: Sequence[str]) -> dict[str, list[Grant]]:
    """Grants that are not void and not used up before any use in an open period, by metric."""
    rows = await conn.fetch(
        """
        SELECT id, metric_type, amount, used_amount, priority, starts_at, nullif(expires_at, 'infinity') AS expires_at,
            created_at
        FROM metering.grants WHERE user_id = $1 AND metric_type = ANY($2) AND voided_at IS NULL
        ORDER BY id
        -- FOR UPDATE: the same credit is not promised in two periods at once, and not spent twice.
        FOR UPDATE
        """,
        user_id,
        list(metrics),
    )
    found: dict[str, list[Grant]] = {metric: [] for metric in metrics}
    for row in rows:
        found[row["metric_type"]].append(_grant(row))
    return found


async def find_live(conn: Connection, *, user_id: str) -> dict[str, int]:
    """What is left of grants that may be used now, by metric; zero of metrics whose grants are used up or over."""
    rows = await conn.fetch(
        """
        SELECT metric_type, coalesce(sum(amount - used_amount) FILTER (
            WHERE voided_at IS NULL AND starts_at <= now() AND expires_at > now()), 0)::bigint AS available
        FROM metering.grants WHERE user_id = $1 GROUP BY metric_type
        """,
        user_id,
    )
    return {row["metric_type"]: row["available"] for row in rows}


async def find_uses(
    conn: Connection, *, user_id: str, metrics: Sequence[str], period_start: datetime
) -> dict[str, dict[UUID, int]]:
    rows = await conn.fetch(
        """
        SELECT metric_type, grant_id, amount FROM metering.grant_uses
        WHERE user_id = $1 AND metric_type = ANY($2) AND period_start = $3
        """,
        user_id,
        list(metrics),
        period_start,
    )
    found: dict[str, dict[UUID, int]] = {metric: {} for metric in metrics}
    for row in rows:
        found[row["metric_type"]][UUID(int=row["grant_id"].int)] = row["amount"]
    return found


async def find_promised(
    conn: Connection, *, user_id: str, limits: Mapping[str, int], period_start: datetime
) -> dict[str, int]:
    """What open holds of other periods hold beyond their plan's quota: credits that are spoken for."""
    rows = await conn.fetch(
        """
        SELECT c.metric_type, sum(greatest(0, c.held_value - greatest(0, l.ceiling + s.spent - c.metric_value)))::bigint
            AS promised
        FROM usage_metrics AS c
        JOIN unnest($2::text[], $3::bigint[]) AS l(metric, ceiling) ON l.metric = c.metric_type
        CROSS JOIN LATERAL (
            SELECT coalesce(sum(u.amount), 0)::bigint AS spent FROM metering.grant_uses AS u
            WHERE (u.user_id, u.metric_type, u.period_start) = (c.user_id, c.metric_type, c.period_start)
        ) AS s
        WHERE c.user_id = $1 AND c.period_start <> $4 AND c.held_value > 0
        GROUP BY c.metric_type
        """,
        user_id,
        list(limits),
        list(limits.values()),
        period_start,
    )
    return {row["metric_type"]: row["promised"] for row in rows}


async def change_uses(
    conn: Connection, changes: Mapping[UUID, int], *, user_id: str, metric: str, period_start: datetime
) -> None:
    """Book what was spent of grants (positive) or given back to them (negative), for one period. Grants are locked."""
    await conn.execute(
        """
        WITH change AS (SELECT id, amount FROM unnest($1::uuid[], $2::bigint[]) AS c(id, amount)),
        spent AS (
            UPDATE metering.grants AS g SET used_amount = g.used_amount + change.amount
            FROM change WHERE g.id = change.id
        )
        INSERT INTO metering.grant_uses AS u (grant_id, user_id, metric_type, period_start, amount)
        SELECT id, $3, $4, $5, greatest(amount, 0) FROM change
        -- ON CONFLICT: the grant is locked, so this only tells the first use in a period from later ones.
        ON CONFLICT (grant_id, period_start) DO UPDATE
        SET amount = u.amount + (SELECT c.amount FROM change AS c WHERE c.id = u.grant_id)
        """,
        list(changes),
        list(changes.values()),
        user_id,
        metric,
        period_start,
    )


async def insert_grant(
    conn: Connection, *, grant_id: UUID, user_id: str, metric: str, amount: int, priority: int,
    expires_at: datetime | None, reason: str, granted_by: str,
) -> bool:  # fmt: skip
    """False if the id is taken."""
    made = await conn.execute(
        """
        INSERT INTO metering.grants (id, user_id, metric_type, amount, priority, expires_at, reason, granted_by)
        VALUES ($1, $2, $3, $4, $5, coalesce($6::timestamptz, 'infinity'), $7, $8)
        -- ON CONFLICT: the same grant asked for twice at once is made once.
        ON CONFLICT (id) DO NOTHING
        """,
        grant_id,
        user_id,
        metric,
        amount,
        priority,
        expires_at,
        reason,
        granted_by,
    )
    return made == 1


async def find_grants(conn: Connection, user_id: str) -> list[Record]:
    """All grants of a user, in the order they are used."""
    return await conn.fetch(
        """
        SELECT id, metric_type, amount, used_amount, priority, starts_at, nullif(expires_at, 'infinity') AS expires_at,
            reason, granted_by, created_at, voided_at
        FROM metering.grants WHERE user_id = $1 ORDER BY metric_type, priority, grants.expires_at, created_at, id
        """,
        user_id,
    )


async def find_grant(conn: Connection, grant_id: UUID) -> Record | None:
    return await conn.fetchrow(
        """
        SELECT id, user_id, metric_type, amount, used_amount, priority, starts_at,
            nullif(expires_at, 'infinity') AS expires_at, reason, granted_by, created_at, voided_at
        FROM metering.grants WHERE id = $1
        """,
        grant_id,
    )


async def void_grant(conn: Connection, grant_id: UUID) -> bool:
    """End a grant; what was used of it stays used. False if there is none."""
    voided = await conn.execute(
        "UPDATE metering.grants SET voided_at = coalesce(voided_at, now()) WHERE id = $1", grant_id
    )
    return voided == 1


def _grant(row: Record) -> Grant:
    return Grant(
        id=UUID(int=row["id"].int),
        amount=row["amount"],
        used=row["used_amount"],
        priority=row["priority"],
        starts_at=row["starts_at"],
        expires_at=row["expires_at"] or NEVER,
        created_at=row["created_at"],
    )
