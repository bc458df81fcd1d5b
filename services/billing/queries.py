"""SQL of billing's users: customers, accounts, subscriptions, invoices, checkouts. The work's is in work_queries."""

from datetime import datetime
from typing import Any, Final
from uuid import UUID

from libs.common.database import Connection, Record
from services.billing.domain import (
    EffectivePlan,
    StripeSubscription,
    Subscription,
    SubscriptionStatus,
)

CHECKOUT_REUSE_H: Final = 23
"""Stripe forgets an idempotency key, and ends a session, after 24 h."""


async def lock_user(conn: Connection, user_id: UUID) -> None:
    """Until commit, one transaction at a time ties this user to a customer, or erases both.

    An advisory lock, because the race is about rows that do not exist yet. Take it before `lock_customer`.
    """
    await conn.fetchval("SELECT pg_advisory_xact_lock(hashtextextended('billing.user.' || $1::text, 0))", str(user_id))


async def lock_customer(conn: Connection, stripe_customer_id: str) -> None:
    """Until commit, one transaction at a time stores what belongs to this customer, or says whose it is.

    An advisory lock: without it a subscription stored while its customer is being linked would be seen by neither.
    """
    await conn.fetchval(
        "SELECT pg_advisory_xact_lock(hashtextextended('billing.customer.' || $1, 0))", stripe_customer_id
    )


async def get_now(conn: Connection) -> datetime:
    """The database's clock, by which periods, grace and endings are judged."""
    return await conn.fetchval("SELECT now()")


async def is_admin(conn: Connection) -> bool:
    """Whether the user as whom the transaction runs is an admin."""
    return await conn.fetchval("SELECT public.is_admin()")


# Customers ----------------------------------------------------------------------------------------------------------


async def insert_customer_intent(conn: Connection, *, user_id: UUID, email: str | None, key: str) -> None:
    await conn.execute(
        """
        INSERT INTO billing.customers (user_id, email, idempotency_key) VALUES ($1, $2, $3)
        -- ON CONFLICT: of two first checkouts at the same time the second uses the first's key, and so its customer.
        ON CONFLICT (user_id) DO NOTHING
        """,
        user_id,
        email,
        key,
    )


async def get_customer(conn: Connection, user_id: UUID) -> Record:
    row = await find_customer(conn, user_id)
    if row is None:
        raise LookupError(f"no customer row for user {user_id}")
    return row


async def find_customer(conn: Connection, user_id: UUID) -> Record | None:
    return await conn.fetchrow(
        """
        SELECT user_id, stripe_customer_id, email, idempotency_key,
            created_at < now() - make_interval(hours => $2) AS is_old
        FROM billing.customers WHERE user_id = $1
        """,
        user_id,
        CHECKOUT_REUSE_H,
    )


async def find_user_of_customer(conn: Connection, stripe_customer_id: str) -> UUID | None:
    return await conn.fetchval(
        "SELECT user_id FROM billing.customers WHERE stripe_customer_id = $1", stripe_customer_id
    )


async def upsert_customer_id(conn: Connection, *, user_id: UUID, stripe_customer_id: str) -> bool:
    """Tie the customer to the user unless either is tied elsewhere already; say whether they belong together now.

    The e-mail address was needed for Stripe's answer and goes with it.
    """
    owner = await find_user_of_customer(conn, stripe_customer_id)
    if owner is not None:
        return owner == user_id
    tied = await conn.fetchval(
        """
        INSERT INTO billing.customers (user_id, stripe_customer_id, idempotency_key) VALUES ($1, $2, $2)
        -- ON CONFLICT: an intent is waiting for its answer, or the user has another customer, which then stays.
        ON CONFLICT (user_id) DO UPDATE SET stripe_customer_id = excluded.stripe_customer_id, email = NULL
            WHERE customers.stripe_customer_id IS NULL
        RETURNING user_id
        """,
        user_id,
        stripe_customer_id,
    )
    return tied is not None


async def move_customer(conn: Connection, *, user_id: UUID, stripe_customer_id: str) -> None:
    """Give the customer and all its rows to the user, who loses any other customer, and it any other user."""
    await conn.execute(
        "UPDATE billing.customers SET stripe_customer_id = NULL WHERE stripe_customer_id = $1 AND user_id <> $2",
        stripe_customer_id,
        user_id,
    )
    await conn.execute(
        """
        INSERT INTO billing.customers (user_id, stripe_customer_id, idempotency_key) VALUES ($1, $2, $2)
        -- ON CONFLICT: the user has a row already; the caller holds the user's lock and means what it says.
        ON CONFLICT (user_id) DO UPDATE SET stripe_customer_id = excluded.stripe_customer_id, email = NULL
        """,
        user_id,
        stripe_customer_id,
    )
    await conn.execute(
        "UPDATE billing.subscriptions SET user_id = $1 WHERE stripe_customer_id = $2", user_id, stripe_customer_id
    )
    await conn.execute(
        "UPDATE billing.invoices SET user_id = $1 WHERE stripe_customer_id = $2", user_id, stripe_customer_id
    )


async def reset_customer(conn: Connection, *, stripe_customer_id: str, key: str) -> UUID | None:
    """The customer is gone at Stripe: the next checkout makes another, under another key. Returns whose it was."""
    return await conn.fetchval(
        """
        UPDATE billing.customers SET stripe_customer_id = NULL, idempotency_key = $2, created_at = now()
        WHERE stripe_customer_id = $1
            AND NOT EXISTS (SELECT FROM billing.erasures WHERE erasures.user_id = customers.user_id)
        RETURNING user_id
        """,
        stripe_customer_id,
        key,
    )


# Subscriptions and the account that follows from them ---------------------------------------------------------------


async def upsert_subscription(
    conn: Connection,
    subscription: StripeSubscription,
    *,
    user_id: UUID | None,
    tier: str | None,
    price: tuple[str | None, str | None],
    read_at: datetime,
) -> None:
    """Store what was fetched, unless what is stored was fetched later. `price` is id and lookup key."""
    await conn.execute(
        """
        INSERT INTO billing.subscriptions (id, user_id, stripe_customer_id, status, tier, price_id, price_lookup_key,
            current_period_start, current_period_end, cancel_at, cancel_at_period_end, canceled_at, ended_at, trial_end,
            past_due_since, created_at, read_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
        -- ON CONFLICT locks the row; the comparison closes the race of a slow fetch with one begun later.
        ON CONFLICT (id) DO UPDATE SET
            user_id = coalesce(excluded.user_id, subscriptions.user_id),
            stripe_customer_id = excluded.stripe_customer_id,
            status = excluded.status,
            tier = excluded.tier,
            price_id = excluded.price_id,
            price_lookup_key = excluded.price_lookup_key,
            current_period_start = excluded.current_period_start,
            current_period_end = excluded.current_period_end,
            cancel_at = excluded.cancel_at,
            cancel_at_period_end = excluded.cancel_at_period_end,
            canceled_at = excluded.canceled_at,
            ended_at = excluded.ended_at,
            trial_end = excluded.trial_end,
            past_due_since = excluded.past_due_since,
            read_at = excluded.read_at
        WHERE subscriptions.read_at <= excluded.read_at
        """,
        subscription.id,
        user_id,
        subscription.stripe_customer_id,
        subscription.status,
        tier,
        *price,
        subscription.current_period_start,
        subscription.current_period_end,
        subscription.cancel_at,
        subscription.cancel_at_period_end,
        subscription.canceled_at,
        subscription.ended_at,
        subscription.trial_end,
        subscription.past_due_since,
        subscription.created_at,
        read_at,
    )


async def find_owner_of_subscription(conn: Connection, subscription_id: str) -> UUID | None:
    return await conn.fetchval("SELECT user_id FROM billing.subscriptions WHERE id = $1", subscription_id)


async def claim_rows_of_customer(conn: Connection, *, user_id: UUID, stripe_customer_id: str) -> list[str]:
    """Give what was stored while nobody was known for the customer to its user; return the ids of the invoices."""
    await conn.execute(
        "UPDATE billing.subscriptions SET user_id = $1 WHERE stripe_customer_id = $2 AND user_id IS NULL",
        user_id,
        stripe_customer_id,
    )
    rows = await conn.fetch(
        "UPDATE billing.invoices SET user_id = $1 WHERE stripe_customer_id = $2 AND user_id IS NULL RETURNING id",
        user_id,
        stripe_customer_id,
    )
    return sorted(row["id"] for row in rows)


async def find_subscriptions(conn: Connection, user_id: UUID) -> list[Subscription]:
    rows = await conn.fetch(
        """
        SELECT id, status, tier, current_period_start, current_period_end, cancel_at, cancel_at_period_end, trial_end,
            past_due_since, created_at, stripe_customer_id
        FROM billing.subscriptions WHERE user_id = $1
        """,
        user_id,
    )
    facts: list[dict[str, Any]] = [dict(row) for row in rows]
    return [Subscription(status=SubscriptionStatus(one.pop("status")), **one) for one in facts]


async def lock_account(conn: Connection, user_id: UUID) -> tuple[int, EffectivePlan]:
    """The account's version and plan, made if missing.

    FOR UPDATE, taken before the subscriptions are read: of two changes at once the second sees the first's rows.
    """
    await conn.execute(
        "INSERT INTO billing.accounts (user_id) VALUES ($1) ON CONFLICT (user_id) DO NOTHING",  # two first changes race
        user_id,
    )
    row = await conn.fetchrow(
        """
        SELECT version, tier, status, current_period_start, current_period_end, cancel_at, trial_end,
            stripe_customer_id, review_at
        FROM billing.accounts WHERE user_id = $1 FOR UPDATE
        """,
        user_id,
    )
    if row is None:
        raise LookupError(f"no account row for user {user_id}")
    facts = dict(row)
    return facts.pop("version"), EffectivePlan(**facts)


async def update_account(conn: Connection, user_id: UUID, plan: EffectivePlan, *, version: int) -> None:
    await conn.execute(
        """
        UPDATE billing.accounts SET version = $2, tier = $3, status = $4, current_period_start = $5,
            current_period_end = $6, cancel_at = $7, trial_end = $8, stripe_customer_id = $9, review_at = $10,
            updated_at = CASE WHEN version = $2 THEN updated_at ELSE now() END
        WHERE user_id = $1
        """,
        user_id,
        version,
        plan.tier,
        plan.status,
        plan.current_period_start,
        plan.current_period_end,
        plan.cancel_at,
        plan.trial_end,
        plan.stripe_customer_id,
        plan.review_at,
    )


async def find_account(conn: Connection, user_id: UUID) -> Record | None:
    return await conn.fetchrow(
        """
        SELECT tier, status, current_period_start, current_period_end, cancel_at, trial_end, review_at
        FROM billing.accounts WHERE user_id = $1
        """,
        user_id,
    )


async def find_accounts_to_review(conn: Connection, *, limit: int) -> list[UUID]:
    rows = await conn.fetch(
        "SELECT user_id FROM billing.accounts WHERE review_at <= now() ORDER BY review_at LIMIT $1", limit
    )
    return [row["user_id"] for row in rows]
