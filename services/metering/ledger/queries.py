"""SQL of the ledger: bookings, conflicts, months."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from libs.common.database import Connection, Record
from services.metering.domain import Amounts, Hold, Transition
from services.metering.ledger import domain
from services.metering.ledger.domain import Settlement


async def book_settlement(
    conn: Connection, hold: Hold, transition: Transition, settlement: Settlement
) -> tuple[bool, dict[str, int]]:
    """Book what a run used, free what its hold held and end the hold, in one statement.

    Returns whether the run was booked now (its id is the key, whatever message told of it), and what is used now of
    each metric it touched. The price goes with the tokens, or with the first metric booked if there are none.
    """
    used = settlement.used
    metrics = sorted(used.keys() | transition.held.keys())
    booked = sorted(metric for metric, amount in used.items() if amount)
    priced = "tokens" if "tokens" in booked else next(iter(booked), "")
    rows = await conn.fetch(
        """
        WITH claimed AS (
            INSERT INTO metering.booked_events (key, digest) VALUES ($1, $2)
            -- ON CONFLICT: whoever tells the same fact again, in whatever envelope, books it no second time.
            ON CONFLICT (key) DO NOTHING
            RETURNING key
        ),
        change AS (
            SELECT metric, CASE WHEN EXISTS (SELECT FROM claimed) THEN used ELSE 0 END AS used, held
            FROM unnest($3::text[], $4::bigint[], $5::bigint[]) AS c(metric, used, held)
        ),
        booked AS (
            INSERT INTO metering.usage_ledger
                (source, event_id, user_id, metric_type, amount, kind, period_start, cost_micro_usd, attributes)
            SELECT 'agents.run', $6::text, $7, metric, used, 'usage', $8,
                CASE WHEN metric = $10 THEN $11::bigint ELSE 0 END, $12
            FROM change WHERE used > 0 ORDER BY metric
        ),
        marked AS (
            UPDATE metering.holds
            SET state = $13, settled_at = now(), ended_at = coalesce(ended_at, now()) WHERE id = $6::text::uuid
        )
        INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end, metric_value, held_value)
        SELECT $7, metric, $8, $9, used, greatest(held, 0) FROM change ORDER BY metric
        -- ON CONFLICT: the counter may be made or deleted by somebody else at this moment; no change is lost by that.
        ON CONFLICT (user_id, metric_type, period_start) DO UPDATE
        SET metric_value = u.metric_value + EXCLUDED.metric_value,
            held_value = u.held_value + (SELECT held FROM change WHERE metric = EXCLUDED.metric_type),
            updated_at = now()
        RETURNING u.metric_type, u.metric_value, (SELECT count(*) FROM claimed) AS claimed
        """,
        domain.event_key(domain.RUNS, str(hold.id)),
        settlement.digest,
        metrics,
        [used.get(metric, 0) for metric in metrics],
        [transition.held.get(metric, 0) for metric in metrics],
        str(hold.id),
        hold.user_id,
        hold.period.start,
        hold.period.end,
        priced,
        settlement.cost_micro_usd,
        settlement.attributes,
        transition.state.value,
    )
    return bool(rows and rows[0]["claimed"]), {row["metric_type"]: row["metric_value"] for row in rows}


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
