"""SQL of reservations that commit by themselves: holds by id first, then counters, in one statement."""

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from uuid import UUID

import asyncpg

from libs.common.database import Connection
from services.metering.columns import hold_columns, joined, new_hold
from services.metering.domain import Ask, Hold, Period, Usage
from services.metering.queries import Counter, Taking, ceilings_of

_UNDONE_BY: Final = frozenset({"holds_pkey", "usage_metrics_held_value_check"})
"""Constraints of `metering.holds` and `usage_metrics` that undo the statement: the id is known, the room is gone."""


class Taken(NamedTuple):
    """`short` are users and metrics without room for what is asked of them, and what stands there.

    `odd` are those of them one of whose ids names a hold already, and users whose period is over.
    """

    holds: dict[UUID, Hold]
    short: dict[tuple[str, str], Usage]
    odd: set[str]


async def insert_holds_with_quota(
    conn: Connection, asks: Sequence[tuple[Ask, Period]], takings: Mapping[Counter, Taking]
) -> Taken | None:
    """Hold what these ask and take it from their counters, for all users but those who are short or odd.

    `takings` are the sums of the asks, in their periods. Who is short or odd is judged by the statement's snapshot. An
    id that names a hold already, and somebody who was quicker, undo it: then it returns None, and has held nothing for
    anybody.
    """
    keys, columns = sorted(takings), hold_columns(asks)
    periods = {period: place for place, period in enumerate(zip(*columns[-2:], strict=True))}
    taken = [takings[key] for key in keys]
    try:
        rows = await conn.fetch(
            _INSERT_HOLDS_WITH_QUOTA,
            *columns,
            joined([key[0] for key in keys]),
            joined([key[1] for key in keys]),
            bytes([periods[key[2], one.period_end] for key, one in zip(keys, taken, strict=True)]),
            [one.amount for one in taken],
            ceilings_of(keys, takings),
        )
    except (asyncpg.UniqueViolationError, asyncpg.CheckViolationError) as error:
        if error.constraint_name not in _UNDONE_BY:
            raise
        return None
    (at,) = [row for row in rows if row["user_id"] is None]
    left = [row for row in rows if row["user_id"] is not None]
    left_out = {row["user_id"] for row in left}
    created_at, until, until_if_confirmed = at["made_at"], at["until"], at["until_if_confirmed"]
    return Taken(
        holds={
            ask.hold_id: new_hold(ask, period, created_at, until_if_confirmed if ask.is_confirmed else until)
            for ask, period in asks
            if ask.user_id not in left_out
        },
        short={
            (row["user_id"], row["metric"]): Usage(used=row["used"], held=row["held"]) for row in left if row["metric"]
        },
        odd={row["user_id"] for row in left if not row["metric"]},
    )


_INSERT_HOLDS_WITH_QUOTA: Final = """
    -- In a sub-SELECT the planner does not see how long an array is, and keeps one plan for all batches; else it plans
    -- nearly every small batch anew.
    WITH asked AS (
        SELECT id, user_id, get_byte($3::bytea, place::integer - 1) + 1 AS kind
        FROM unnest((SELECT $1::uuid[]), string_to_array((SELECT $2::text), ','))
            WITH ORDINALITY AS a(id, user_id, place)
    ),
    wanted AS (
        SELECT user_id, metric, amount, get_byte($10::bytea, place::integer - 1) + 1 AS kind
        FROM unnest(
            string_to_array((SELECT $8::text), ','), string_to_array((SELECT $9::text), ','), (SELECT $11::bigint[])
        ) WITH ORDINALITY AS w(user_id, metric, amount, place)
    ),
    -- Whoever is short is left out by a look without a lock, so that the statement is undone, and the server's log
    -- written to, only where a race was lost. LIMIT keeps it a lookup by key: as a join it became a scan of all.
    short AS (
        SELECT w.user_id, w.metric, coalesce(c.used, 0) AS used, coalesce(c.held, 0) AS held
        FROM wanted AS w
        LEFT JOIN LATERAL (
            SELECT u.metric_value AS used, u.held_value AS held FROM usage_metrics AS u
            WHERE (u.user_id, u.metric_type, u.period_start) = (w.user_id, w.metric, ($6::timestamptz[])[w.kind])
            LIMIT 1
        ) AS c ON true
        WHERE coalesce(c.used + c.held, 0) + w.amount
            > coalesce($12::jsonb ->> (w.user_id || ' ' || w.metric), $12::jsonb ->> w.metric)::bigint
    ),
    left_out AS (
        SELECT user_id, metric, used, held FROM short
        UNION ALL
        -- Who is short may be so because of the very hold that is asked for again. Of everybody else ids are not looked
        -- up: that would cost each ask, and one that is known undoes the statement.
        SELECT a.user_id, NULL, NULL, NULL FROM asked AS a
        WHERE ($7::timestamptz[])[a.kind] <= now() OR (
            a.user_id IN (SELECT user_id FROM short)
            AND (SELECT h.id FROM metering.holds AS h WHERE h.id = a.id) IS NOT NULL
        )
    ),
    claimed AS (
        INSERT INTO metering.holds (id, user_id, amounts, period_start, period_end, confirmed_at, expires_at)
        SELECT id, user_id, ($4::jsonb[])[kind], ($6::timestamptz[])[kind], ($7::timestamptz[])[kind],
            CASE WHEN ($5::boolean[])[kind] THEN now() END,
            now() + CASE WHEN ($5::boolean[])[kind] THEN interval '24 hours' ELSE interval '60 seconds' END
        FROM asked WHERE user_id NOT IN (SELECT user_id FROM left_out)
        -- An id that is known violates the key; of two asks with one id at once the second waits, and then does so.
        ORDER BY id
        RETURNING id
    ),
    taken AS (
        INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end, held_value)
        SELECT user_id, metric, ($6::timestamptz[])[kind] AS period_start, ($7::timestamptz[])[kind], amount
        -- Counted, so that all holds are there before the first counter is locked: EXISTS would be content with one.
        FROM wanted WHERE (SELECT count(*) FROM claimed) > 0 AND user_id NOT IN (SELECT user_id FROM left_out)
        ORDER BY user_id, metric, period_start
        -- ON CONFLICT locks the counter and decides on its newest value, whatever the snapshot showed. One that has no
        -- room any more violates its CHECK, which undoes the holds, too.
        ON CONFLICT (user_id, metric_type, period_start) DO UPDATE
        SET updated_at = now(), held_value = CASE
            WHEN u.metric_value + u.held_value + EXCLUDED.held_value
                <= coalesce($12::jsonb ->> (EXCLUDED.user_id || ' ' || EXCLUDED.metric_type),
                    $12::jsonb ->> EXCLUDED.metric_type)::bigint
            THEN u.held_value + EXCLUDED.held_value ELSE -1 END
    )
    SELECT user_id, metric, used, held, NULL::timestamptz AS made_at, NULL::timestamptz AS until,
        NULL::timestamptz AS until_if_confirmed
    FROM left_out
    UNION ALL
    -- All holds are made in one instant, so it is told once, without a user, and none of them is sent back.
    SELECT NULL, NULL, NULL, NULL, now(), now() + interval '60 seconds', now() + interval '24 hours'
    """
