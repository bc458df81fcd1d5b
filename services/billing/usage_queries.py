"""SQL of usage that Stripe charges for: what is to be reported, what was, and what Stripe did not count."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple
from uuid import UUID

from libs.common.database import Connection, Record
from services.billing.domain import UsageReport
from services.billing.work_queries import LEASE_S, MAX_PAUSE_S

STRIPE_REMEMBERS_H: Final = 23
"""Stripe knows an identifier for 24 h at least: https://docs.stripe.com/api/billing/meter-event/create"""


class Payer(NamedTuple):
    tier: str
    stripe_customer_id: str


class NewReport(NamedTuple):
    """What a settled hold used of a metric; `used_at` None is now."""

    hold_id: UUID
    metric: str
    user_id: UUID
    stripe_customer_id: str
    meter: str
    value: int
    used_at: datetime | None


async def find_payers(conn: Connection, user_ids: Collection[UUID]) -> dict[UUID, Payer]:
    """The tier of each user and the customer who pays for it; who has no customer is left out."""
    rows = await conn.fetch(
        """
        SELECT user_id, tier, stripe_customer_id FROM billing.accounts
        WHERE user_id = ANY($1) AND stripe_customer_id IS NOT NULL
        ORDER BY user_id
        FOR KEY SHARE  -- an erasure deletes the account first and waits here: it then sees the report, and deletes it
        """,
        list(user_ids),
    )
    return {row["user_id"]: Payer(row["tier"], row["stripe_customer_id"]) for row in rows}


async def insert_reports(conn: Connection, reports: Sequence[NewReport]) -> None:
    await conn.execute(
        """
        INSERT INTO billing.usage_reports (hold_id, metric, user_id, stripe_customer_id, meter, identifier, value,
            used_at)
        SELECT hold_id, metric, user_id, stripe_customer_id, meter, hold_id || '-' || metric, value,
            coalesce(used_at, now())
        FROM unnest($1::uuid[], $2::text[], $3::uuid[], $4::text[], $5::text[], $6::bigint[], $7::timestamptz[])
            AS used(hold_id, metric, user_id, stripe_customer_id, meter, value, used_at)
        ORDER BY hold_id, metric
        -- ON CONFLICT: a hold settles once; should its settlement be told again, it is charged once all the same.
        ON CONFLICT (hold_id, metric) DO NOTHING
        """,
        *map(list, zip(*reports, strict=True)),
    )


async def lease_reports(conn: Connection, *, limit: int) -> list[UsageReport]:
    """Take reports that are due; from now on each counts as possibly sent."""
    rows = await conn.fetch(
        """
        WITH due AS MATERIALIZED (  -- as with refreshes
            SELECT hold_id, metric, coalesce(tried_at < now() - make_interval(hours => $3), false) AS is_stale
            FROM billing.usage_reports WHERE state = 'waiting' AND due_at <= now() AND leased_until <= now()
            ORDER BY due_at LIMIT $1
            FOR UPDATE SKIP LOCKED  -- as with refreshes: replicas share the work
        )
        UPDATE billing.usage_reports AS report SET lease = gen_random_uuid(), attempts = attempts + 1,
            leased_until = now() + make_interval(secs => $2), tried_at = coalesce(report.tried_at, now())
        FROM due WHERE report.hold_id = due.hold_id AND report.metric = due.metric
        RETURNING report.hold_id, report.metric, stripe_customer_id, meter, identifier, value, used_at, due.is_stale,
            lease AS token
        """,
        limit,
        LEASE_S,
        STRIPE_REMEMBERS_H,
    )
    return [UsageReport(**dict(row)) for row in rows]


async def mark_report(conn: Connection, report: UsageReport, *, state: str, error: str | None = None) -> None:
    """Under the lease only: a worker that slept past it must not undo what another found out."""
    await conn.execute(
        """
        UPDATE billing.usage_reports SET state = $4, last_error = $5, settled_at = now(), leased_until = '-infinity'
        WHERE hold_id = $1 AND metric = $2 AND lease = $3 AND state = 'waiting'
        """,
        report.hold_id,
        report.metric,
        report.token,
        state,
        error,
    )


async def postpone_report(conn: Connection, report: UsageReport, *, error: str) -> None:
    await conn.execute(
        """
        UPDATE billing.usage_reports SET last_error = $4, leased_until = '-infinity',
            due_at = now() + make_interval(secs => least($5, 0.5 * 2 ^ least(attempts, 12)) * (0.75 + random() / 2))
        WHERE hold_id = $1 AND metric = $2 AND lease = $3 AND state = 'waiting'
        """,
        report.hold_id,
        report.metric,
        report.token,
        error,
        MAX_PAUSE_S,
    )


async def get_sent_total(
    conn: Connection, *, stripe_customer_id: str, meter: str, start: datetime, end: datetime
) -> int:
    return await conn.fetchval(
        """
        SELECT coalesce(sum(value), 0)::bigint FROM billing.usage_reports
        WHERE stripe_customer_id = $1 AND meter = $2 AND used_at >= $3 AND used_at < $4 AND state = 'sent'
        """,
        stripe_customer_id,
        meter,
        start,
        end,
    )


async def refuse_reports(conn: Connection, codes: Mapping[str, str]) -> int:
    """Stripe did not count these after all; return how many of them are ours."""
    return await conn.execute(
        """
        UPDATE billing.usage_reports SET state = 'refused', last_error = refused.code, settled_at = now()
        FROM unnest($1::text[], $2::text[]) AS refused(identifier, code)
        WHERE usage_reports.identifier = refused.identifier
        """,
        list(codes),
        list(codes.values()),
    )


async def resend_refused(conn: Connection, *, meter: str | None, stripe_customer_id: str | None) -> int:
    """Have refused usage reported again, under other names: Stripe may remember the old ones. Returns how many."""
    return await conn.execute(
        """
        UPDATE billing.usage_reports SET state = 'waiting', due_at = now(), attempts = 0, tried_at = NULL,
            settled_at = NULL, identifier = hold_id || '-' || metric || '-' || substr(gen_random_uuid()::text, 1, 8)
        WHERE state = 'refused' AND ($1::text IS NULL OR meter = $1) AND ($2::text IS NULL OR stripe_customer_id = $2)
        """,
        meter,
        stripe_customer_id,
    )


async def find_reports(conn: Connection, *, state: str | None, limit: int) -> list[Record]:
    """Newest first."""
    return await conn.fetch(
        """
        SELECT hold_id, metric, user_id, stripe_customer_id, meter, identifier, value, used_at, state, attempts,
            settled_at, last_error
        FROM billing.usage_reports WHERE ($1::text IS NULL OR state = $1)
        ORDER BY used_at DESC, hold_id, metric LIMIT $2
        """,
        state,
        limit,
    )


async def oldest_waiting_s(conn: Connection) -> float:
    age = await conn.fetchval(
        "SELECT extract(epoch FROM now() - min(used_at)) FROM billing.usage_reports WHERE state = 'waiting'"
    )
    return float(age or 0)


async def count_refused(conn: Connection) -> Mapping[str, int]:
    """By Stripe's code."""
    rows = await conn.fetch(
        """
        SELECT coalesce(last_error, 'unknown') AS code, count(*) AS number FROM billing.usage_reports
        WHERE state = 'refused' GROUP BY 1 ORDER BY 1
        """
    )
    return {row["code"]: row["number"] for row in rows}


async def find_totals(conn: Connection, *, start: datetime, end: datetime) -> Sequence[Mapping[str, Any]]:
    """What we reported in `[start, end)`, by customer and meter; nobody of whom something is under way."""
    rows = await conn.fetch(
        """
        SELECT stripe_customer_id, meter, (coalesce(sum(value) FILTER (WHERE state = 'sent'), 0))::bigint AS value
        FROM billing.usage_reports WHERE used_at >= $1 AND used_at < $2
        GROUP BY stripe_customer_id, meter
        HAVING NOT bool_or(state = 'waiting' OR settled_at >= $2)
        ORDER BY stripe_customer_id, meter
        """,
        start,
        end,
    )
    return [dict(row) for row in rows]


async def delete_old_reports(conn: Connection, *, keep_days: int) -> None:
    await conn.execute(
        "DELETE FROM billing.usage_reports WHERE state = 'sent' AND used_at < now() - make_interval(days => $1)",
        keep_days,
    )
