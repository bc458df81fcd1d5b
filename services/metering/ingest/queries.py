"""SQL of ingest: many events in few statements. Lock order: names of events, then counters, then seen values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from libs.common.database import Connection
from services.metering.domain import Period
from services.metering.ingest.domain import Gauge, UsageEvent
from services.metering.queries import Counter


class Entry(NamedTuple):
    """One booking: what one event did to one meter; its fields are the columns of `insert_entries`.

    `user_id` is the pseudonym of a deleted account, or the user. `at` is None for now.
    """

    source: str
    event_id: str
    user_id: str
    meter: str
    amount: int
    value: int | None
    period_start: datetime
    at: datetime | None
    cost_micro_usd: int
    properties: str


@dataclass(slots=True)
class Change:
    """What a batch does to one counter. `at` is when the last of its events happened."""

    period_end: datetime
    at: datetime
    amount: int = 0
    latest: tuple[datetime, str] | None = None


async def claim_events(conn: Connection, events: Sequence[UsageEvent]) -> set[bytes]:
    """Take the names of these events; return those that were free."""
    ordered = sorted(events, key=lambda event: event.key)
    rows = await conn.fetch(
        """
        INSERT INTO metering.booked_events (key, digest)
        SELECT key, digest FROM unnest($1::bytea[], $2::bytea[]) AS e(key, digest)
        -- ON CONFLICT: of two batches with the same event the second waits for the first's commit; all batches take
        -- their names in the same order, so none waits for one that waits for it.
        ON CONFLICT (key) DO NOTHING
        RETURNING key
        """,
        [event.key for event in ordered],
        [event.digest for event in ordered],
    )
    return {row["key"] for row in rows}


async def find_periods(conn: Connection, wanted: Sequence[tuple[str, datetime]]) -> dict[tuple[str, datetime], Period]:
    """The periods that instants fall in for users whose plan counts by the subscription."""
    rows = await conn.fetch(
        """
        SELECT w.user_id, w.at, p.period_start, p.period_end
        FROM unnest($1::text[], $2::timestamptz[]) AS w(user_id, at)
        JOIN metering.entitlements AS e ON e.user_id = w.user_id
        CROSS JOIN LATERAL metering.period_at(w.at, e.period_start, e.period_end) AS p
        """,
        [user_id for user_id, _ in wanted],
        [at for _, at in wanted],
    )
    return {(row["user_id"], row["at"]): Period(start=row["period_start"], end=row["period_end"]) for row in rows}


async def lock_gauges(conn: Connection, counters: Mapping[Counter, datetime]) -> dict[Counter, Gauge]:
    """Lock these counters (given with the ends of their periods), make those that are missing, return their state."""
    keys = sorted(counters)
    rows = await conn.fetch(
        """
        INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end)
        SELECT user_id, metric, period_start, period_end
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[])
            AS c(user_id, metric, period_start, period_end)
        ORDER BY user_id, metric, period_start
        -- ON CONFLICT DO UPDATE locks what is there and makes what is not in one step, so that nobody deletes a counter
        -- in between; what is worked out from it stays true until it is written.
        ON CONFLICT (user_id, metric_type, period_start) DO UPDATE SET updated_at = now()
        RETURNING u.user_id, u.metric_type, u.period_start, u.metric_value, u.latest_at, u.latest_id
        """,
        [key[0] for key in keys],
        [key[1] for key in keys],
        [key[2] for key in keys],
        [counters[key] for key in keys],
    )
    return {
        (row["user_id"], row["metric_type"], row["period_start"]): Gauge(
            value=row["metric_value"],
            latest=None if row["latest_at"] is None else (row["latest_at"], row["latest_id"]),
        )
        for row in rows
    }


async def insert_seen_values(conn: Connection, values: set[tuple[Counter, bytes]]) -> set[tuple[Counter, bytes]]:
    """Note the values; return those that had not been seen in their period."""
    ordered = sorted(values)
    rows = await conn.fetch(
        """
        INSERT INTO metering.seen_values (user_id, metric_type, period_start, value_key)
        SELECT user_id, metric, period_start, value_key
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bytea[])
            AS v(user_id, metric, period_start, value_key)
        -- ON CONFLICT: a value is new once, whoever brings it; their counters are locked, so nobody brings it just now.
        ON CONFLICT (user_id, metric_type, period_start, value_key) DO NOTHING
        RETURNING user_id, metric_type, period_start, value_key
        """,
        [counter[0] for counter, _ in ordered],
        [counter[1] for counter, _ in ordered],
        [counter[2] for counter, _ in ordered],
        [value for _, value in ordered],
    )
    return {((row["user_id"], row["metric_type"], row["period_start"]), row["value_key"]) for row in rows}


async def insert_entries(conn: Connection, entries: Sequence[Entry]) -> None:
    await conn.execute(
        """
        INSERT INTO metering.usage_ledger (source, event_id, user_id, metric_type, amount, value, kind, period_start,
            occurred_at, cost_micro_usd, attributes)
        SELECT source, event_id, user_id, metric, amount, value, 'usage', period_start, coalesce(at, now()), cost,
            attributes::jsonb
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::bigint[], $7::timestamptz[],
            $8::timestamptz[], $9::bigint[], $10::text[])
            AS e(source, event_id, user_id, metric, amount, value, period_start, at, cost, attributes)
        """,
        *map(list, zip(*entries, strict=True)),
    )


async def add_to_counters(conn: Connection, changes: Mapping[Counter, Change]) -> dict[Counter, int]:
    """Add amounts that are not negative to counters that may not be there; return what is used now."""
    keys = sorted(changes)
    rows = await conn.fetch(
        """
        INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end, metric_value)
        SELECT user_id, metric, period_start, period_end, amount
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::timestamptz[], $5::bigint[])
            AS c(user_id, metric, period_start, period_end, amount)
        ORDER BY user_id, metric, period_start
        -- ON CONFLICT: the counter may be made or deleted by somebody else at this moment; no change is lost by that.
        ON CONFLICT (user_id, metric_type, period_start) DO UPDATE
        SET metric_value = u.metric_value + EXCLUDED.metric_value, updated_at = now()
        RETURNING u.user_id, u.metric_type, u.period_start, u.metric_value
        """,
        [key[0] for key in keys],
        [key[1] for key in keys],
        [key[2] for key in keys],
        [changes[key].period_end for key in keys],
        [changes[key].amount for key in keys],
    )
    return {(row["user_id"], row["metric_type"], row["period_start"]): row["metric_value"] for row in rows}


async def move_counters(conn: Connection, changes: Mapping[Counter, Change]) -> dict[Counter, int]:
    """Apply changes of either sign to counters that `lock_gauges` has locked; return what is used now."""
    keys = sorted(changes)
    latest = [changes[key].latest or (None, None) for key in keys]
    rows = await conn.fetch(
        """
        UPDATE usage_metrics AS u
        SET metric_value = u.metric_value + c.amount, latest_at = coalesce(c.latest_at, u.latest_at),
            latest_id = coalesce(c.latest_id, u.latest_id), updated_at = now()
        FROM unnest($1::text[], $2::text[], $3::timestamptz[], $4::bigint[], $5::timestamptz[], $6::text[])
            AS c(user_id, metric, period_start, amount, latest_at, latest_id)
        WHERE (u.user_id, u.metric_type, u.period_start) = (c.user_id, c.metric, c.period_start)
        RETURNING u.user_id, u.metric_type, u.period_start, u.metric_value
        """,
        [key[0] for key in keys],
        [key[1] for key in keys],
        [key[2] for key in keys],
        [changes[key].amount for key in keys],
        [at for at, _ in latest],
        [event_id for _, event_id in latest],
    )
    return {(row["user_id"], row["metric_type"], row["period_start"]): row["metric_value"] for row in rows}
