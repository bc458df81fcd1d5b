"""SQL of the ledger: bookings, conflicts, months."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from libs.common.database import Connection, Record
from services.metering.domain import Amounts, Hold, Transition
from services.metering.ledger import domain
from services.metering.ledger.domain import Settlement


class Ending(NamedTuple):
    """A hold, what becomes of it, and what its run used."""

    hold: Hold
    transition: Transition
    settlement: Settlement


async def book_settlements(
    conn: Connection, endings: Sequence[Ending]
) -> tuple[set[UUID], dict[tuple[str, str, datetime], int]]:
    """Book what runs used, free what their holds held and end these holds, all in one statement.

    Returns which of them were booked before (a run's id is the key, whatever message told of it) and so not now, and
    what is used now of each counter touched: user, metric, start of the period. The holds are locked, and differ.
    """
    lines = [line for ending in endings for line in _lines(ending)]
    rows = await conn.fetch(
        _BOOK_SETTLEMENTS,
        [hold.id for hold, _, _ in endings],
        [domain.event_key(domain.RUNS, str(hold.id)) for hold, _, _ in endings],
        [settlement.digest for _, _, settlement in endings],
        [hold.user_id for hold, _, _ in endings],
        [hold.period.start for hold, _, _ in endings],
        [hold.period.end for hold, _, _ in endings],
        [transition.state.value for _, transition, _ in endings],
        [settlement.attributes for _, _, settlement in endings],
        [hold_id for hold_id, *_ in lines],
        [metric for _, metric, *_ in lines],
        [used for _, _, used, _, _ in lines],
        [held for _, _, _, held, _ in lines],
        [cost for *_, cost in lines],
    )
    return set(rows[0]["booked_before"] if rows else ()), {
        (row["user_id"], row["metric_type"], row["period_start"]): row["metric_value"] for row in rows
    }


def _lines(ending: Ending) -> Iterator[tuple[UUID, str, int, int, int]]:
    """Hold, metric, what is used and held more of it, and what it cost."""
    used, held = ending.settlement.used, ending.transition.held
    priced = ending.settlement.priced_metric
    for metric in used.keys() | held.keys():
        cost = ending.settlement.cost_micro_usd if metric == priced else 0
        yield ending.hold.id, str(metric), used.get(metric, 0), held.get(metric, 0), cost


_BOOK_SETTLEMENTS: Final = """
    WITH ending AS (
        SELECT id, key, digest, user_id, period_start, period_end, state, attributes
        FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::text[], $5::timestamptz[], $6::timestamptz[], $7::text[],
            $8::jsonb[]) AS e(id, key, digest, user_id, period_start, period_end, state, attributes)
    ),
    claimed AS (
        INSERT INTO metering.booked_events (key, digest) SELECT key, digest FROM ending ORDER BY key
        -- ON CONFLICT: whoever tells the same fact again, in whatever envelope, books it no second time. Ordered as
        -- everybody takes names, so that none waits for one that waits for it.
        ON CONFLICT (key) DO NOTHING
        RETURNING key
    ),
    line AS (
        SELECT e.id, e.user_id, l.metric, e.period_start, e.period_end, e.attributes, l.held, l.cost,
            CASE WHEN c.key IS NULL THEN 0 ELSE l.used END AS used
        FROM unnest($9::uuid[], $10::text[], $11::bigint[], $12::bigint[], $13::bigint[])
            AS l(id, metric, used, held, cost)
        JOIN ending AS e USING (id) LEFT JOIN claimed AS c USING (key)
    ),
    booked AS (
        INSERT INTO metering.usage_ledger
            (source, event_id, user_id, metric_type, amount, kind, period_start, cost_micro_usd, attributes)
        SELECT 'agents.run', id::text, user_id, metric, used, 'usage', period_start, cost, attributes
        FROM line WHERE used > 0 ORDER BY id, metric
    ),
    marked AS (
        UPDATE metering.holds AS h SET state = e.state, settled_at = now(), ended_at = coalesce(h.ended_at, now())
        FROM ending AS e WHERE h.id = e.id
    ),
    -- Several runs of a user change the same counter, which the statement may touch only once.
    change AS (
        SELECT user_id, metric, period_start, max(period_end) AS period_end, sum(used)::bigint AS used,
            sum(held)::bigint AS held
        FROM line GROUP BY user_id, metric, period_start
    ),
    counted AS (
        INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end, metric_value, held_value)
        SELECT user_id, metric, period_start, period_end, used, greatest(held, 0) FROM change
        ORDER BY user_id, metric, period_start
        -- ON CONFLICT: the counter may be made or deleted by somebody else at this moment; no change is lost by that.
        -- What is freed is looked up in one value: in rows, each counter would search through all of them.
        ON CONFLICT (user_id, metric_type, period_start) DO UPDATE
        SET metric_value = u.metric_value + EXCLUDED.metric_value,
            held_value = u.held_value + (
                (SELECT jsonb_object_agg(concat_ws(' ', user_id, metric, period_start), held) FROM change)
                ->> concat_ws(' ', EXCLUDED.user_id, EXCLUDED.metric_type, EXCLUDED.period_start)
            )::bigint,
            updated_at = now()
        RETURNING u.user_id, u.metric_type, u.period_start, u.metric_value
    )
    SELECT user_id, metric_type, period_start, metric_value,
        ARRAY(SELECT id FROM ending WHERE key NOT IN (SELECT key FROM claimed)) AS booked_before
    FROM counted
    """


async def claim_event(conn: Connection, *, key: bytes, digest: bytes) -> bool:
    """Take a fact's name for its booking; False if it is booked already."""
    taken = await conn.execute(
        """
        INSERT INTO metering.booked_events (key, digest) VALUES ($1, $2)
        -- ON CONFLICT: of two who book the same fact at once the second waits, and then sees that it is booked.
        ON CONFLICT (key) DO NOTHING
        """,
        key,
        digest,
    )
    return taken == 1


async def find_digests(conn: Connection, keys: list[bytes]) -> dict[bytes, bytes]:
    """What the booked facts of these names said."""
    rows = await conn.fetch("SELECT key, digest FROM metering.booked_events WHERE key = ANY($1)", keys)
    return {row["key"]: row["digest"] for row in rows}


async def insert_entries(
    conn: Connection,
    amounts: Amounts,
    *,
    source: str,
    event_id: str,
    user_id: str,
    kind: str,
    period_start: datetime,
    attributes: Mapping[str, Any],
    costs: Mapping[str, int] | None = None,
) -> None:
    """Write bookings whose counters the caller changes in the same transaction."""
    metrics = sorted(metric for metric, amount in amounts.items() if amount)
    await conn.execute(
        """
        INSERT INTO metering.usage_ledger
            (source, event_id, user_id, metric_type, amount, kind, period_start, cost_micro_usd, attributes)
        SELECT $1, $2, $3, metric, amount, $4, $5, cost, $6
        FROM unnest($7::text[], $8::bigint[], $9::bigint[]) AS booked(metric, amount, cost) ORDER BY metric
        """,
        source,
        event_id,
        user_id,
        kind,
        period_start,
        attributes,
        metrics,
        [amounts[metric] for metric in metrics],
        [(costs or {}).get(metric, 0) for metric in metrics],
    )


async def upsert_conflict(
    conn: Connection, *, source: str, event_id: str, digest: bytes, user_id: str, content: Mapping[str, Any]
) -> None:
    """Keep what came under a booked name with other content, each such content once."""
    await conn.execute(
        """
        INSERT INTO metering.conflicts AS c (key, digest, source, event_id, user_id, content)
        VALUES ($1, $2, $3, $4, $5, $6)
        -- ON CONFLICT: the same contradiction delivered at once by two senders is one row, seen twice.
        ON CONFLICT (key, digest) DO UPDATE SET times = c.times + 1, last_seen_at = now()
        """,
        domain.event_key(source, event_id),
        digest,
        source,
        event_id,
        user_id,
        content,
    )


async def sum_of_run(conn: Connection, *, user_id: str, run_id: str, period_start: datetime) -> list[Record]:
    """What stands booked for a run by metric, with its refunds and corrections."""
    return await conn.fetch(
        """
        SELECT metric_type, sum(amount)::bigint AS amount, sum(cost_micro_usd)::bigint AS cost_micro_usd
        FROM metering.usage_ledger
        WHERE user_id = $1 AND period_start = $2 AND source IN ('agents.run', 'metering.refund', 'metering.correction')
            AND split_part(event_id, ':', 1) = $3
        GROUP BY metric_type ORDER BY metric_type
        """,
        user_id,
        period_start,
        run_id,
    )


async def make_months(conn: Connection, *, behind_days: int, ahead_months: int) -> int:
    """Make the partitions that bookings of now, of late events and of the coming months need."""
    return await conn.fetchval(
        "SELECT metering.make_ledger_months(now() - make_interval(days => $1), now() + make_interval(months => $2))",
        behind_days,
        ahead_months,
    )


async def months_ahead(conn: Connection) -> int:
    """For how many months after this one there are partitions."""
    return await conn.fetchval(
        "SELECT count(*) FROM metering.ledger_months() WHERE is_attached AND month > metering.period_start(now())"
    )


async def find_months(conn: Connection) -> list[Record]:
    return await conn.fetch("SELECT name, month, is_attached FROM metering.ledger_months()")


async def detach_months(conn: Connection, *, before: datetime) -> list[str]:
    rows = await conn.fetch("SELECT name FROM metering.detach_ledger_months($1) AS detached(name)", before)
    return [row["name"] for row in rows]
