"""SQL of what is sold: invoices as Stripe has them, and checkouts from intent to end."""

from datetime import datetime
from uuid import UUID

from libs.common.database import Connection, Record
from services.billing.domain import Purchase, StripeInvoice
from services.billing.queries import CHECKOUT_REUSE_H


async def lock_invoice(conn: Connection, invoice_id: str) -> Record | None:
    """FOR UPDATE: what was told of an invoice is told once, whoever else stores it at the same time."""
    return await conn.fetchrow(
        """
        SELECT user_id, id, stripe_subscription_id, number, status, currency, amount_due_minor, amount_paid_minor,
            attempt_count, next_attempt_at, hosted_url, is_paid_told, attempt_told
        FROM billing.invoices WHERE id = $1 FOR UPDATE
        """,
        invoice_id,
    )


async def mark_invoice_told(conn: Connection, invoice_id: str, *, is_paid_told: bool, attempt_told: int) -> None:
    await conn.execute(
        "UPDATE billing.invoices SET is_paid_told = $2, attempt_told = $3 WHERE id = $1",
        invoice_id,
        is_paid_told,
        attempt_told,
    )


async def has_failed_attempt(conn: Connection, *, invoice_id: str, stripe_subscription_id: str | None) -> bool:
    """Whether Stripe has said that collecting failed: by its event or, had that been lost, by the subscription."""
    return bool(
        await conn.fetchval(
            """
            SELECT EXISTS (SELECT FROM billing.stripe_events WHERE object_id = $1 AND type = 'invoice.payment_failed')
                OR EXISTS (SELECT FROM billing.subscriptions WHERE id = $2 AND status IN ('past_due', 'unpaid'))
            """,
            invoice_id,
            stripe_subscription_id,
        )
    )


async def upsert_invoice(conn: Connection, invoice: StripeInvoice, *, user_id: UUID | None, read_at: datetime) -> None:
    await conn.execute(
        """
        INSERT INTO billing.invoices (id, user_id, stripe_customer_id, stripe_subscription_id, number, status, currency,
            amount_due_minor, amount_paid_minor, attempt_count, next_attempt_at, hosted_url, period_start, period_end,
            paid_at, created_at, read_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17)
        -- ON CONFLICT: as with subscriptions, a fetch begun earlier never replaces one begun later.
        ON CONFLICT (id) DO UPDATE SET
            user_id = coalesce(excluded.user_id, invoices.user_id),
            stripe_customer_id = excluded.stripe_customer_id,
            stripe_subscription_id = excluded.stripe_subscription_id,
            number = excluded.number,
            status = excluded.status,
            amount_due_minor = excluded.amount_due_minor,
            amount_paid_minor = excluded.amount_paid_minor,
            attempt_count = excluded.attempt_count,
            next_attempt_at = excluded.next_attempt_at,
            hosted_url = excluded.hosted_url,
            period_start = excluded.period_start,
            period_end = excluded.period_end,
            paid_at = excluded.paid_at,
            read_at = excluded.read_at
        WHERE invoices.read_at <= excluded.read_at
        """,
        invoice.id,
        user_id,
        invoice.stripe_customer_id,
        invoice.stripe_subscription_id,
        invoice.number,
        invoice.status,
        invoice.currency,
        invoice.amount_due_minor,
        invoice.amount_paid_minor,
        invoice.attempt_count,
        invoice.next_attempt_at,
        invoice.hosted_url,
        invoice.period_start,
        invoice.period_end,
        invoice.paid_at,
        invoice.created_at,
        read_at,
    )


async def find_invoices(
    conn: Connection, user_id: UUID, *, before: tuple[datetime, str] | None, limit: int
) -> list[Record]:
    """Newest first. `before` is creation time and id of the last one already seen."""
    return await conn.fetch(
        """
        SELECT id, number, status, currency, amount_due_minor, amount_paid_minor, hosted_url, period_start, period_end,
            paid_at, created_at
        FROM billing.invoices
        WHERE user_id = $1 AND status <> 'draft' AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3))
        ORDER BY created_at DESC, id DESC LIMIT $4
        """,
        user_id,
        before[0] if before else None,
        before[1] if before else None,
        limit,
    )


# Checkouts ----------------------------------------------------------------------------------------------------------


async def find_live_checkouts(conn: Connection, user_id: UUID) -> list[Record]:
    return await conn.fetch(
        """
        SELECT id, tier, success_url, cancel_url, idempotency_key, status, stripe_session_id FROM billing.checkouts
        WHERE user_id = $1 AND status IN ('pending', 'open') AND created_at > now() - make_interval(hours => $2)
        ORDER BY created_at DESC, id DESC
        """,
        user_id,
        CHECKOUT_REUSE_H,
    )


async def insert_checkout(conn: Connection, *, checkout_id: UUID, key: str, purchase: Purchase) -> None:
    await conn.execute(
        """
        INSERT INTO billing.checkouts (id, user_id, tier, success_url, cancel_url, idempotency_key)
        VALUES ($1, $2, $3, $4, $5, $6)
        """,
        checkout_id,
        purchase.user_id,
        purchase.tier,
        purchase.success_url,
        purchase.cancel_url,
        key,
    )


async def mark_checkout(conn: Connection, checkout_id: UUID, *, session_id: str | None, status: str) -> None:
    await conn.execute(
        """
        UPDATE billing.checkouts SET status = $2, stripe_session_id = coalesce($3, stripe_session_id)
        WHERE id = $1 AND status IN ('pending', 'open')
        """,
        checkout_id,
        status,
        session_id,
    )


async def mark_session(conn: Connection, *, session_id: str, status: str, subscription_id: str | None) -> None:
    await conn.execute(
        """
        UPDATE billing.checkouts SET status = $2, stripe_subscription_id = $3
        WHERE stripe_session_id = $1 AND status IN ('pending', 'open')
        """,
        session_id,
        status,
        subscription_id,
    )
