"""SQL of repairs: comparing counters with the ledger, rebuilding them, lists to look at."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from libs.common.database import Connection, Record
from services.metering.queries import Counter


async def find_bound(conn: Connection, *, after: str, users: int) -> str | None:
    """The user that so many users with counters come up to after this one; None if fewer are left."""
    return await conn.fetchval(
        """
        SELECT user_id FROM (
            SELECT DISTINCT user_id FROM usage_metrics WHERE user_id > $1 ORDER BY user_id LIMIT $2
        ) AS next ORDER BY user_id OFFSET $2 - 1
        """,
        after,
        users,
    )


async def compare(conn: Connection, *, after: str, until: str | None) -> Mapping[str, Any]:
    """Number, sum and checksum of what both sides say of users in `(after, until]`, as one snapshot.

    A checksum is the sum of 64-bit hashes of the lines, so that those of parts add up to that of the whole.
    """
    row = await conn.fetchrow(
        """
        WITH counted AS (
            SELECT user_id, metric_type, period_start, metric_value AS amount, held_value AS held
            FROM usage_metrics
            WHERE user_id > $1 AND ($2::text IS NULL OR user_id <= $2)
                AND period_start >= (SELECT metering.ledger_since())
        ),
        booked AS (
            SELECT user_id, metric_type, period_start, sum(amount)::bigint AS amount
            FROM metering.usage_ledger
            WHERE user_id > $1 AND ($2::text IS NULL OR user_id <= $2) AND user_id NOT LIKE 'erased:%'
            GROUP BY user_id, metric_type, period_start
        ),
        open AS (
            SELECT h.user_id, a.key AS metric_type, h.period_start, sum(a.value::bigint)::bigint AS held
            FROM metering.holds AS h CROSS JOIN LATERAL jsonb_each_text(h.amounts) AS a
            WHERE h.state = 'held' AND h.user_id > $1 AND ($2::text IS NULL OR h.user_id <= $2)
            GROUP BY h.user_id, a.key, h.period_start
        ),
        lines AS (
            SELECT 'counters' AS side, concat_ws('|', user_id, metric_type, extract(epoch FROM period_start), amount)
                AS line, amount, 0 AS held FROM counted WHERE amount <> 0
            UNION ALL
            SELECT 'ledger', concat_ws('|', user_id, metric_type, extract(epoch FROM period_start), amount), amount, 0
            FROM booked WHERE amount <> 0
            UNION ALL
            SELECT 'counters', concat_ws('|held|', user_id, metric_type, extract(epoch FROM period_start), held), 0,
                held
            FROM counted WHERE held <> 0
            UNION ALL
            SELECT 'ledger', concat_ws('|held|', user_id, metric_type, extract(epoch FROM period_start), held), 0, held
            FROM open WHERE held <> 0
        )
        SELECT jsonb_object_agg(side, jsonb_build_array(lines, amount, held, checksum)) AS sides FROM (
            SELECT side, count(*) AS lines, sum(amount) AS amount, sum(held) AS held,
                sum(hashtextextended(line, 0)::numeric)::text AS checksum
            FROM lines GROUP BY side
        ) AS sums
        """,
        after,
        until,
    )
    return (row["sides"] if row is not None else None) or {}


async def find_drift(conn: Connection, *, after: str, until: str | None) -> list[Record]:
    return await conn.fetch(
        """
        SELECT user_id, metric_type, period_start, counted::bigint, booked::bigint, held::bigint, open::bigint
        FROM metering.drift WHERE user_id > $1 AND ($2::text IS NULL OR user_id <= $2)
        ORDER BY user_id, metric_type, period_start
        """,
        after,
        until,
    )


async def find_drift_of(conn: Connection, user_id: str) -> list[Record]:
    return await conn.fetch(
        """
        SELECT user_id, metric_type, period_start, counted::bigint, booked::bigint, held::bigint, open::bigint
        FROM metering.drift WHERE user_id = $1 ORDER BY metric_type, period_start
        """,
        user_id,
    )


async def rebuild_counter(conn: Connection, counter: Counter) -> None:
    """Make a counter say what the ledger and the open holds say."""
    await conn.execute(
        """
        INSERT INTO usage_metrics (user_id, metric_type, period_start, period_end)
        SELECT $1, $2, $3, p.period_end FROM metering.period_at($3, $3, NULL) AS p
        -- ON CONFLICT: there is a counter mostly; where there is none, one is made to be locked.
        ON CONFLICT (user_id, metric_type, period_start) DO NOTHING
        """,
        *counter,
    )
    await conn.execute(
        """
        SELECT FROM usage_metrics WHERE (user_id, metric_type, period_start) = ($1, $2, $3)
        -- FOR UPDATE: who books at this moment has either committed, and is in the sums below, or adds to their result.
        FOR UPDATE
        """,
        *counter,
    )
    await conn.execute(
        """
        UPDATE usage_metrics AS c
        SET metric_value = coalesce((
                SELECT sum(l.amount) FROM metering.usage_ledger AS l
                WHERE (l.user_id, l.metric_type, l.period_start) = (c.user_id, c.metric_type, c.period_start)
            ), 0),
            held_value = coalesce((
                SELECT sum((h.amounts ->> c.metric_type)::bigint) FROM metering.holds AS h
                WHERE h.user_id = c.user_id AND h.period_start = c.period_start AND h.state = 'held'
            ), 0),
            updated_at = now()
        WHERE (c.user_id, c.metric_type, c.period_start) = ($1, $2, $3)
        """,
        *counter,
    )


async def find_entries(
    conn: Connection, *, user_id: str, metric: str | None, since: datetime | None, limit: int
) -> list[Record]:
    """A user's bookings in their order, with what each left its counter at; the last ones if there are too many."""
    return await conn.fetch(
        """
        SELECT id, source, event_id, metric_type, kind, amount, value, balance, period_start, occurred_at, recorded_at,
            cost_micro_usd, attributes
        FROM (
            SELECT id, source, event_id, metric_type, kind, amount, value, period_start, occurred_at, recorded_at,
                cost_micro_usd, attributes,
                (sum(amount) OVER (PARTITION BY metric_type, period_start ORDER BY id))::bigint AS balance
            FROM metering.usage_ledger
            WHERE user_id = $1 AND ($2::text IS NULL OR metric_type = $2) AND ($3::timestamptz IS NULL
                OR period_start >= $3)
        ) AS told
        ORDER BY id DESC LIMIT $4
        """,
        user_id,
        metric,
        since,
        limit,
    )


async def find_orphans(conn: Connection, *, older_than_s: int, limit: int) -> list[Record]:
    """Open holds that have expired, or are older than runs ever are: what a sweeper should have ended, or will."""
    return await conn.fetch(
        """
        SELECT id, user_id, amounts, period_start, created_at, confirmed_at, expires_at,
            extract(epoch FROM now() - created_at)::bigint AS age_s, expires_at <= now() AS is_expired
        FROM metering.holds
        WHERE state = 'held' AND (expires_at <= now() OR created_at <= now() - make_interval(secs => $1))
        ORDER BY created_at LIMIT $2
        """,
        older_than_s,
        limit,
    )


async def find_conflicts(conn: Connection, *, limit: int) -> list[Record]:
    return await conn.fetch(
        """
        SELECT source, event_id, user_id, content, first_seen_at, last_seen_at, times
        FROM metering.conflicts ORDER BY last_seen_at DESC LIMIT $1
        """,
        limit,
    )


async def find_spikes(conn: Connection, *, limit: int) -> list[Record]:
    return await conn.fetch(
        """
        SELECT user_id, metric_type, hour, amount, habit_per_hour, seen_at
        FROM metering.spikes ORDER BY hour DESC, amount DESC LIMIT $1
        """,
        limit,
    )


async def insert_spikes(conn: Connection, *, factor: int, floors: Mapping[str, int]) -> list[Record]:
    """Note who used in the last hour far more than in an hour of the week before; return those not noted before.

    A habit needs three days of history. Only metrics with a floor are looked at, and only amounts above it.
    """
    return await conn.fetch(
        """
        WITH recent AS (
            SELECT l.user_id, l.metric_type, sum(l.amount)::bigint AS amount
            FROM metering.usage_ledger AS l
            JOIN unnest($2::text[], $3::bigint[]) AS f(metric, floor) ON f.metric = l.metric_type
            WHERE l.recorded_at > now() - interval '1 hour' AND l.occurred_at > now() - interval '1 hour'
                AND l.kind = 'usage' AND l.period_start > now() - interval '32 days' AND l.user_id NOT LIKE 'erased:%'
            GROUP BY l.user_id, l.metric_type, f.floor
            HAVING sum(l.amount) > f.floor
        )
        INSERT INTO metering.spikes (user_id, metric_type, hour, amount, habit_per_hour)
        SELECT r.user_id, r.metric_type, date_trunc('hour', now()), r.amount, h.per_hour
        FROM recent AS r
        CROSS JOIN LATERAL (
            SELECT (coalesce(sum(l.amount), 0) / 168)::bigint AS per_hour, min(l.occurred_at) AS since
            FROM metering.usage_ledger AS l
            WHERE l.user_id = r.user_id AND l.metric_type = r.metric_type AND l.kind = 'usage'
                AND l.period_start > now() - interval '40 days'
                AND l.occurred_at > now() - interval '169 hours' AND l.occurred_at <= now() - interval '1 hour'
        ) AS h
        WHERE h.since < now() - interval '3 days' AND r.amount > $1 * greatest(h.per_hour, 1)
        -- ON CONFLICT: of several workers that look at the same hour one tells.
        ON CONFLICT (user_id, metric_type, hour) DO NOTHING
        RETURNING user_id, metric_type, amount, habit_per_hour
        """,
        factor,
        list(floors),
        list(floors.values()),
    )
