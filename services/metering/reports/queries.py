"""SQL of reports. Users' own run as the user, so that row-level security guards them; operators' run as metering."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from libs.common.database import Connection, Record
from services.metering.reports.domain import Grain, Slice


async def find_open_holds(conn: Connection, *, user_id: str) -> list[Record]:
    return await conn.fetch(
        """
        SELECT id, amounts, confirmed_at IS NOT NULL AS is_confirmed, created_at, expires_at
        FROM metering.holds WHERE user_id = $1 AND state = 'held' ORDER BY created_at, id
        """,
        user_id,
    )


async def find_slices(
    conn: Connection, *, user_id: str, metrics: Sequence[str], grain: Grain, group_by: str | None,
    since: datetime, until: datetime,
) -> list[Slice]:  # fmt: skip
    """Usage by step, metric and property, less refunds and corrections. What was forgiven was used all the same."""
    rows = await conn.fetch(
        """
        SELECT date_trunc($3, occurred_at, 'UTC') AS start, metric_type, attributes ->> $4 AS grp,
            sum(amount)::bigint AS amount, max(value) AS peak, sum(cost_micro_usd)::bigint AS cost_micro_usd,
            (array_agg(value ORDER BY occurred_at DESC, event_id DESC) FILTER (WHERE value IS NOT NULL))[1] AS last
        FROM metering.usage_ledger
        WHERE user_id = $1 AND metric_type = ANY($2) AND kind <> 'adjustment' AND occurred_at >= $5 AND occurred_at < $6
            -- An instant lies in a period that began at most a month before it: this leaves the other months unread.
            AND period_start > $5 - interval '32 days' AND period_start < $6
        GROUP BY 1, 2, 3
        """,
        user_id,
        list(metrics),
        grain,
        group_by,
        since,
        until,
    )
    return [
        Slice(
            start=row["start"],
            metric=row["metric_type"],
            group=row["grp"],
            amount=row["amount"],
            peak=row["peak"],
            last=row["last"],
            cost_micro_usd=row["cost_micro_usd"],
        )
        for row in rows
    ]


async def get_cost(conn: Connection, *, user_id: str, period_start: datetime) -> int:
    """What the period's usage cost, in millionths of a US dollar."""
    return await conn.fetchval(
        """
        SELECT coalesce(sum(cost_micro_usd), 0)::bigint FROM metering.usage_ledger
        WHERE user_id = $1 AND period_start = $2
        """,
        user_id,
        period_start,
    )


async def find_top_users(conn: Connection, *, metric: str, limit: int) -> list[Record]:
    """Who used most of a metric in the current period."""
    return await conn.fetch(
        """
        SELECT c.user_id, coalesce(e.tier, 'free') AS tier, c.metric_value AS used, c.held_value AS held,
            c.period_start, c.period_end
        FROM usage_metrics AS c LEFT JOIN metering.entitlements AS e ON e.user_id = c.user_id
        WHERE c.metric_type = $1 AND c.period_end > now() AND c.period_start <= now()
        ORDER BY c.metric_value DESC, c.user_id LIMIT $2
        """,
        metric,
        limit,
    )


async def find_near_limit(
    conn: Connection, *, limits: Mapping[str, Mapping[str, int]], percent: int, limit: int
) -> list[Record]:
    """Who has used or holds that share of a limit, the nearest first. `limits` are the tiers'; overrides count."""
    found: Any = await conn.fetch(
        """
        SELECT c.user_id, coalesce(e.tier, 'free') AS tier, c.metric_type, c.metric_value AS used,
            c.held_value AS held, l.ceiling AS "limit", c.period_end AS resets_at
        FROM usage_metrics AS c
        LEFT JOIN metering.entitlements AS e ON e.user_id = c.user_id
        CROSS JOIN LATERAL (
            SELECT CASE jsonb_typeof(e.features #> ARRAY['limits', c.metric_type])
                WHEN 'number' THEN (e.features #>> ARRAY['limits', c.metric_type])::numeric
                WHEN 'null' THEN NULL
                ELSE (coalesce($1::jsonb -> e.tier, $1::jsonb -> 'free') ->> c.metric_type)::numeric
            END::bigint AS ceiling
        ) AS l
        WHERE c.period_end > now() AND c.period_start <= now() AND l.ceiling IS NOT NULL
            AND (c.metric_value + c.held_value) * 100 >= l.ceiling * $2
        ORDER BY (c.metric_value + c.held_value)::float8 / greatest(l.ceiling, 1) DESC, c.user_id, c.metric_type
        LIMIT $3
        """,
        {tier: dict(of_tier) for tier, of_tier in limits.items()},
        percent,
        limit,
    )
    return found
