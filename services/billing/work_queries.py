"""SQL of billing's work at Stripe: events received, objects to fetch again, users to erase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from libs.common.database import Connection, Record
from services.billing.webhook import WebhookEvent, object_to_refresh

LEASE_S: Final = 60
"""Longer than any fetch may take; how long a killed worker delays its objects."""
MAX_PAUSE_S: Final = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """The right to fetch one object. `wanted` and `read_at` say which reasons the fetch will cover."""

    object_id: str
    token: UUID
    wanted: int
    read_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What became of an event: `is_new` if it was stored now, `is_in_time` unless it was signed too far from now."""

    is_new: bool
    is_in_time: bool


async def insert_events(
    conn: Connection, deliveries: Sequence[tuple[WebhookEvent, int]], *, tolerance_s: int
) -> list[Receipt]:
    """Store events, each beside when it was signed, and ask for their objects: one statement, for Stripe waits."""
    events = [event for event, _ in deliveries]
    rows = await conn.fetch(
        """
        WITH delivered AS (
            SELECT id, type, object_id, stripe_customer_id, livemode, api_version, created, payload, is_hint, position,
                abs(extract(epoch FROM now()) - signed_at) <= $11 AS is_in_time
            FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::boolean[], $6::text[], $7::timestamptz[],
                    $8::jsonb[], $9::boolean[], $10::bigint[]) WITH ORDINALITY
                AS event(id, type, object_id, stripe_customer_id, livemode, api_version, created, payload, is_hint,
                    signed_at, position)
        ), received AS (
            INSERT INTO billing.stripe_events (id, type, object_id, stripe_customer_id, livemode, api_version, created,
                payload, handled_at)
            SELECT DISTINCT ON (id) id, type, object_id, stripe_customer_id, livemode, api_version, created, payload,
                CASE WHEN NOT is_hint THEN now() END
            FROM delivered WHERE is_in_time
            ORDER BY id  -- one order for all, so that two groups with the same events wait but never deadlock
            -- ON CONFLICT: Stripe delivers twice and in parallel; the second waits for the first and changes nothing.
            ON CONFLICT (id) DO NOTHING
            RETURNING id, object_id, handled_at
        ), refresh AS (
            INSERT INTO billing.refreshes (object_id, wanted)
            SELECT object_id, count(*) FROM received WHERE handled_at IS NULL GROUP BY object_id ORDER BY object_id
            -- ON CONFLICT: as in request_refresh.
            ON CONFLICT (object_id) DO UPDATE
            SET wanted = refreshes.wanted + excluded.wanted, due_at = least(refreshes.due_at, now())
        )
        SELECT received.id IS NOT NULL AS is_new, delivered.is_in_time
        FROM delivered LEFT JOIN received USING (id)
        ORDER BY delivered.position
        """,
        [event.id for event in events],
        [event.type for event in events],
        [event.object_id for event in events],
        [event.stripe_customer_id for event in events],
        [event.is_live for event in events],
        [event.api_version for event in events],
        [event.created_at for event in events],
        [dict(event.payload) for event in events],
        [object_to_refresh(event) is not None for event in events],
        [signed_at for _, signed_at in deliveries],
        tolerance_s,
    )
    return [Receipt(**dict(row)) for row in rows]


async def request_refresh(conn: Connection, object_id: str) -> None:
    """Have the object fetched again soon; a back-off that is running is cut short, because something is new."""
    await conn.execute(
        """
        INSERT INTO billing.refreshes (object_id) VALUES ($1)
        -- ON CONFLICT: many reasons, one row; a fetch in flight does not cover this one.
        ON CONFLICT (object_id) DO UPDATE SET wanted = refreshes.wanted + 1, due_at = least(refreshes.due_at, now())
        """,
        object_id,
    )


async def lease_refreshes(conn: Connection, *, limit: int) -> list[Lease]:
    """Take objects that are due and that nobody is fetching.

    `read_at` is the statement's own time, later than the receipt of every event counted in `wanted`.
    """
    rows = await conn.fetch(
        """
        -- MATERIALIZED: a subquery may be run once per row, and would lock as many rows more each time.
        WITH due AS MATERIALIZED (
            SELECT object_id FROM billing.refreshes
            WHERE done < wanted AND due_at <= now() AND leased_until <= now()
            ORDER BY due_at
            LIMIT $1
            -- SKIP LOCKED: workers of several replicas share the work instead of queueing for the same rows.
            FOR UPDATE SKIP LOCKED
        )
        UPDATE billing.refreshes SET lease = gen_random_uuid(), leased_until = now() + make_interval(secs => $2),
            attempts = attempts + 1
        FROM due WHERE refreshes.object_id = due.object_id
        RETURNING refreshes.object_id, lease AS token, wanted, clock_timestamp() AS read_at
        """,
        limit,
        LEASE_S,
    )
    return [Lease(**dict(row)) for row in rows]


async def lease_refresh(conn: Connection, object_id: str) -> Lease | None:
    """As lease_refreshes, for one object; None while somebody else is fetching it."""
    row = await conn.fetchrow(
        """
        UPDATE billing.refreshes SET lease = gen_random_uuid(), leased_until = now() + make_interval(secs => $2),
            attempts = attempts + 1
        WHERE object_id = $1 AND done < wanted AND leased_until <= now()
        RETURNING object_id, lease AS token, wanted, clock_timestamp() AS read_at
        """,
        object_id,
        LEASE_S,
    )
    return Lease(**dict(row)) if row is not None else None


async def finish_refresh(conn: Connection, lease: Lease) -> bool:
    """Close the reasons the fetch has covered; False if the lease was lost, and the result must not be stored."""
    finished = await conn.fetchval(
        """
        UPDATE billing.refreshes SET done = greatest(done, $3), attempts = 0, last_error = NULL, due_at = now(),
            lease = NULL, leased_until = '-infinity'
        WHERE object_id = $1 AND lease = $2  -- the fencing token: a worker that slept past its lease writes nothing
        RETURNING object_id
        """,
        lease.object_id,
        lease.token,
        lease.wanted,
    )
    if finished is None:
        return False
    await conn.execute(
        """
        UPDATE billing.stripe_events SET handled_at = now()
        WHERE object_id = $1 AND handled_at IS NULL AND received_at <= $2
        """,
        lease.object_id,
        lease.read_at,
    )
    return True


async def postpone_refresh(conn: Connection, lease: Lease, *, error: str) -> None:
    """Give the object back with a pause that doubles up to five minutes; there is no last attempt."""
    await conn.execute(
        """
        UPDATE billing.refreshes SET last_error = $3, lease = NULL, leased_until = '-infinity',
            due_at = now() + make_interval(secs => least($4, 0.5 * 2 ^ least(attempts, 12)) * (0.75 + random() / 2))
        WHERE object_id = $1 AND lease = $2
        """,
        lease.object_id,
        lease.token,
        error,
        MAX_PAUSE_S,
    )


async def oldest_unhandled_s(conn: Connection) -> float:
    age = await conn.fetchval(
        "SELECT extract(epoch FROM now() - min(received_at)) FROM billing.stripe_events WHERE handled_at IS NULL"
    )
    return float(age or 0)


async def count_unclaimed(conn: Connection) -> Mapping[str, Any]:
    """Subscriptions that are running and give nobody anything: without a user, or with a price of no plan."""
    row = await conn.fetchrow(
        """
        SELECT count(*) FILTER (WHERE user_id IS NULL) AS nobodys,
            count(*) FILTER (WHERE tier IS NULL) AS unknown_prices
        FROM billing.subscriptions
        WHERE (user_id IS NULL OR tier IS NULL) AND status IN ('active', 'trialing', 'past_due')
        """
    )
    return dict(row) if row is not None else {}


# Events again -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """All that is given must match."""

    event_id: str | None = None
    type: str | None = None
    object_id: str | None = None
    stripe_customer_id: str | None = None
    received_since: datetime | None = None
    received_until: datetime | None = None
    is_unhandled: bool = False

    def values(self) -> tuple[Any, ...]:
        return (
            self.event_id,
            self.type,
            self.object_id,
            self.stripe_customer_id,
            self.received_since,
            self.received_until,
            self.is_unhandled,
        )


async def find_events(
    conn: Connection, wanted: EventFilter, *, before: tuple[datetime, str] | None, limit: int
) -> list[Record]:
    """Newest first, with what keeps the unhandled ones. `before` is receipt and id of the last one already seen."""
    return await conn.fetch(
        """
        SELECT event.id, type, event.object_id, stripe_customer_id, created, received_at, handled_at,
            refreshes.attempts, refreshes.due_at, refreshes.last_error
        FROM billing.stripe_events AS event
        LEFT JOIN billing.refreshes ON handled_at IS NULL AND refreshes.object_id = event.object_id
        WHERE ($1::text IS NULL OR event.id = $1) AND ($2::text IS NULL OR type = $2)
            AND ($3::text IS NULL OR event.object_id = $3) AND ($4::text IS NULL OR stripe_customer_id = $4)
            AND ($5::timestamptz IS NULL OR received_at >= $5) AND ($6::timestamptz IS NULL OR received_at < $6)
            AND (NOT $7 OR handled_at IS NULL)
            AND ($8::timestamptz IS NULL OR (received_at, event.id) < ($8, $9))
        ORDER BY received_at DESC, event.id DESC LIMIT $10
        """,
        *wanted.values(),
        before[0] if before else None,
        before[1] if before else None,
        limit,
    )


async def find_event(conn: Connection, event_id: str) -> Record | None:
    """The event whole, and the state of the object it pointed at."""
    return await conn.fetchrow(
        """
        SELECT event.id, type, event.object_id, stripe_customer_id, livemode, api_version, created, received_at,
            handled_at, payload, coalesce(refreshes.wanted - refreshes.done, 0) AS reasons_left, refreshes.attempts,
            refreshes.due_at, refreshes.last_error
        FROM billing.stripe_events AS event LEFT JOIN billing.refreshes USING (object_id)
        WHERE event.id = $1
        """,
        event_id,
    )


async def request_replay(conn: Connection, wanted: EventFilter) -> int:
    """Have the objects of matching events fetched again; return how many objects that is."""
    return await conn.execute(
        """
        INSERT INTO billing.refreshes (object_id)
        SELECT DISTINCT object_id FROM billing.stripe_events
        WHERE object_id ~ '^(sub|in|cs|cus|evt)_'
            AND ($1::text IS NULL OR id = $1) AND ($2::text IS NULL OR type = $2)
            AND ($3::text IS NULL OR object_id = $3) AND ($4::text IS NULL OR stripe_customer_id = $4)
            AND ($5::timestamptz IS NULL OR received_at >= $5) AND ($6::timestamptz IS NULL OR received_at < $6)
            AND (NOT $7 OR handled_at IS NULL)
        ORDER BY object_id
        -- ON CONFLICT: as in request_refresh.
        ON CONFLICT (object_id) DO UPDATE SET wanted = refreshes.wanted + 1, due_at = least(refreshes.due_at, now())
        """,
        *wanted.values(),
    )


async def delete_old_events(conn: Connection, *, keep_days: int, limit: int) -> int:
    """Handled events, long past the three days in which Stripe may deliver them again."""
    return await conn.execute(
        """
        DELETE FROM billing.stripe_events WHERE id IN (
            SELECT id FROM billing.stripe_events
            WHERE handled_at IS NOT NULL AND received_at < now() - make_interval(days => $1) LIMIT $2
        )
        """,
        keep_days,
        limit,
    )
