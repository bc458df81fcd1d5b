"""SQL of deleted users: the wish, its work at Stripe, and what is kept of them."""

from collections.abc import Sequence
from uuid import UUID

from libs.common.database import Connection
from services.billing.work_queries import LEASE_S, MAX_PAUSE_S


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
        WITH due AS MATERIALIZED (  -- as with refreshes
            SELECT user_id FROM billing.erasures WHERE stripe_done_at IS NULL AND due_at <= now()
            ORDER BY due_at LIMIT $1
            FOR UPDATE SKIP LOCKED  -- as with refreshes: replicas share the work
        )
        UPDATE billing.erasures SET due_at = now() + make_interval(secs => $2), attempts = attempts + 1
        FROM due WHERE erasures.user_id = due.user_id
        RETURNING erasures.user_id
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
    await conn.execute("DELETE FROM billing.usage_reports WHERE user_id = $1", user_id)
    await conn.execute("DELETE FROM billing.profiles WHERE user_id = $1", user_id)
    await conn.execute(
        "DELETE FROM billing.drift WHERE object_id = 'user:' || $1::text OR object_id = ANY($2)",
        str(user_id),
        customers,
    )
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
