"""SQL of billing's work at Stripe: events received, objects to fetch again, users to erase."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from libs.common.database import Connection
from services.billing.webhook import WebhookEvent

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


async def insert_event(
    conn: Connection, event: WebhookEvent, *, signed_at: int, tolerance_s: int, refresh: str | None
) -> Receipt:
    """Store an event and ask for its object, in one statement: Stripe waits for it, and may send thousands."""
    row = await conn.fetchrow(
        """
        WITH received AS (
            INSERT INTO billing.stripe_events (id, type, object_id, stripe_customer_id, livemode, api_version, created,
                payload, handled_at)
            SELECT $1, $2, $3, $4, $5, $6, $7, $8, CASE WHEN $9::text IS NULL THEN now() END
            WHERE abs(extract(epoch FROM now()) - $10) <= $11
            -- ON CONFLICT: Stripe delivers twice and in parallel; the second waits for the first and changes nothing.
            ON CONFLICT (id) DO NOTHING
            RETURNING id
        ), refresh AS (
            INSERT INTO billing.refreshes (object_id) SELECT $9 FROM received WHERE $9 IS NOT NULL
            -- ON CONFLICT: as in request_refresh.
            ON CONFLICT (object_id) DO UPDATE SET wanted = refreshes.wanted + 1, due_at = least(refreshes.due_at, now())
        )
        SELECT EXISTS (SELECT FROM received) AS is_new, abs(extract(epoch FROM now()) - $10) <= $11 AS is_in_time
        """,
        event.id,
        event.type,
        event.object_id,
        event.stripe_customer_id,
        event.is_live,
        event.api_version,
        event.created_at,
        dict(event.payload),
        refresh,
        signed_at,
        tolerance_s,
    )
    if row is None:
        raise LookupError("the statement has one row")
    return Receipt(**dict(row))


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
        UPDATE billing.refreshes SET lease = gen_random_uuid(), leased_until = now() + make_interval(secs => $2),
            attempts = attempts + 1
        WHERE object_id IN (
            SELECT object_id FROM billing.refreshes
            WHERE done < wanted AND due_at <= now() AND leased_until <= now()
            ORDER BY due_at
            LIMIT $1
            -- SKIP LOCKED: workers of several replicas share the work instead of queueing for the same rows.
            FOR UPDATE SKIP LOCKED
        )
        RETURNING object_id, lease AS token, wanted, clock_timestamp() AS read_at
        """,
        limit,
        LEASE_S,
    )
    return [Lease(**dict(row)) for row in rows]


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


async def has_event(conn: Connection, *, object_id: str, event_type: str) -> bool:
    return bool(
        await conn.fetchval(
            "SELECT EXISTS (SELECT FROM billing.stripe_events WHERE object_id = $1 AND type = $2)",
            object_id,
            event_type,
        )
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


# Erasures -----------------------------------------------------------------------------------------------------------


async def insert_erasure(conn: Connection, *, user_id: UUID, stripe_customer_ids: Sequence[str]) -> None:
    await conn.execute(
        """
        INSERT INTO billing.erasures (user_id, stripe_customer_ids) VALUES ($1, $2)
        -- ON CONFLICT: the wish may be repeated by an operator; the first one's row carries it out.
        ON CONFLICT (user_id) DO NOTHING
        """,
        user_id,
        list(stripe_customer_ids),
    )


async def find_customers_of_user(conn: Connection, user_id: UUID) -> list[str]:
    """Every Stripe customer known to be the user's; one, unless somebody made more in Stripe's dashboard."""
    rows = await conn.fetch(
        """
        SELECT stripe_customer_id FROM billing.customers WHERE user_id = $1 AND stripe_customer_id IS NOT NULL
        UNION
        SELECT stripe_customer_id FROM billing.subscriptions WHERE user_id = $1
        ORDER BY 1
        """,
        user_id,
    )
    return [row["stripe_customer_id"] for row in rows]


async def is_erased_user(conn: Connection, user_id: UUID) -> bool:
    return bool(await conn.fetchval("SELECT EXISTS (SELECT FROM billing.erasures WHERE user_id = $1)", user_id))


async def is_erased_customer(conn: Connection, stripe_customer_id: str) -> bool:
    """Whether the customer's rows are gone already; until then its events are stored, and erased with the rest."""
    return bool(
        await conn.fetchval(
            """
            SELECT EXISTS (
                SELECT FROM billing.erasures WHERE stripe_customer_ids @> ARRAY[$1] AND erased_at IS NOT NULL
            )
            """,
            stripe_customer_id,
        )
    )


async def lease_erasures(conn: Connection, *, limit: int) -> list[UUID]:
    """Take users to erase at Stripe. The lease is `due_at` moved ahead: every step of the work may be repeated."""
    rows = await conn.fetch(
        """
        UPDATE billing.erasures SET due_at = now() + make_interval(secs => $2), attempts = attempts + 1
        WHERE user_id IN (
            SELECT user_id FROM billing.erasures WHERE stripe_done_at IS NULL AND due_at <= now()
            ORDER BY due_at LIMIT $1
            FOR UPDATE SKIP LOCKED  -- as with refreshes: replicas share the work
        )
        RETURNING user_id
        """,
        limit,
        LEASE_S,
    )
    return [row["user_id"] for row in rows]


async def get_erasure_customers(conn: Connection, user_id: UUID) -> list[str]:
    return await conn.fetchval("SELECT stripe_customer_ids FROM billing.erasures WHERE user_id = $1", user_id)


async def add_erasure_customers(conn: Connection, user_id: UUID, stripe_customer_ids: Sequence[str]) -> None:
    await conn.execute(
        """
        UPDATE billing.erasures
        SET stripe_customer_ids = ARRAY(SELECT unnest(stripe_customer_ids) UNION SELECT unnest($2::text[]) ORDER BY 1)
        WHERE user_id = $1
        """,
        user_id,
        list(stripe_customer_ids),
    )


async def postpone_erasure(conn: Connection, user_id: UUID, *, error: str) -> None:
    await conn.execute(
        """
        UPDATE billing.erasures SET last_error = $2,
            due_at = now() + make_interval(secs => least($3, 0.5 * 2 ^ least(attempts, 12)))
        WHERE user_id = $1 AND stripe_done_at IS NULL
        """,
        user_id,
        error,
        MAX_PAUSE_S,
    )


async def oldest_erasure_s(conn: Connection) -> float:
    age = await conn.fetchval(
        "SELECT extract(epoch FROM now() - min(requested_at)) FROM billing.erasures WHERE stripe_done_at IS NULL"
    )
    return float(age or 0)


async def mark_stripe_done(conn: Connection, user_id: UUID) -> None:
    await conn.execute(
        "UPDATE billing.erasures SET stripe_done_at = now(), last_error = NULL WHERE user_id = $1", user_id
    )


async def mark_erased(conn: Connection, user_id: UUID) -> bool:
    """False if it was done before: the event of it is then out already."""
    marked = await conn.fetchval(
        "UPDATE billing.erasures SET erased_at = now() WHERE user_id = $1 AND erased_at IS NULL RETURNING user_id",
        user_id,
    )
    return marked is not None


async def delete_user_rows(conn: Connection, user_id: UUID, stripe_customer_ids: Sequence[str]) -> None:
    """Delete what is the user's; keep invoices as books without a person, and events as bare facts."""
    customers = list(stripe_customer_ids)
    await conn.execute("DELETE FROM billing.checkouts WHERE user_id = $1", user_id)
    await conn.execute(
        "DELETE FROM billing.subscriptions WHERE user_id = $1 OR stripe_customer_id = ANY($2)", user_id, customers
    )
    await conn.execute("DELETE FROM billing.accounts WHERE user_id = $1", user_id)
    await conn.execute("DELETE FROM billing.customers WHERE user_id = $1", user_id)
    await conn.execute(
        """
        UPDATE billing.invoices SET user_id = NULL, stripe_customer_id = NULL, stripe_subscription_id = NULL,
            hosted_url = NULL
        WHERE user_id = $1 OR stripe_customer_id = ANY($2)
        """,
        user_id,
        customers,
    )
    await conn.execute(
        """
        UPDATE billing.stripe_events SET payload = '{}', object_id = NULL, stripe_customer_id = NULL,
            handled_at = coalesce(handled_at, now())
        WHERE stripe_customer_id = ANY($1)
        """,
        customers,
    )


async def scrub_events(conn: Connection, object_id: str) -> None:
    """Late events of somebody erased: known as delivered, and nothing else."""
    await conn.execute(
        """
        UPDATE billing.stripe_events SET payload = '{}', object_id = NULL, stripe_customer_id = NULL,
            handled_at = coalesce(handled_at, now())
        WHERE object_id = $1
        """,
        object_id,
    )
