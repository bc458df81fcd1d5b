"""SQL of the console: who holds a cookie, one user in full, what was sampled, what was done."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.database import Connection, Record
from services.gateway.console.charts import Traffic
from services.gateway.console.domain import MINUTES, Status


async def find_session(conn: Connection, session_id: UUID, *, max_age_s: int) -> Record | None:
    """The session behind a cookie, whose it is, and whether its user has a second factor that it has not shown."""
    return await conn.fetchrow(
        """
        SELECT s.id, s.refresh_key, u.id AS user_id, coalesce(u.email, '') AS email,
               s.aal <> 'aal2' AND EXISTS (
                   SELECT FROM auth.mfa_factors f WHERE f.user_id = u.id AND f.status = 'verified'
               ) AS needs_code
        FROM auth.sessions s JOIN auth.users u ON u.id = s.user_id
        WHERE s.id = $1 AND u.deleted_at IS NULL AND s.created_at > now() - make_interval(secs => $2)
          AND (s.not_after IS NULL OR s.not_after > now())
        """,
        session_id,
        max_age_s,
    )


async def list_factors(conn: Connection, user_id: UUID) -> list[UUID]:
    rows = await conn.fetch(
        "SELECT id FROM auth.mfa_factors WHERE user_id = $1 AND status = 'verified' ORDER BY created_at", user_id
    )
    return [row["id"] for row in rows]


async def find_user(conn: Connection, user_id: UUID) -> dict[str, Any] | None:
    row = await conn.fetchrow(
        """
        SELECT u.id, u.email, u.created_at, u.last_sign_in_at, u.email_confirmed_at, u.is_anonymous,
               coalesce(u.banned_until > now(), false) AS is_banned, p.name, p.subscription_tier,
               p.subscription_status, p.subscription_period_end, p.stripe_customer_id, p.premium_features,
               coalesce(p.premium_features -> 'admin' = 'true'::jsonb, false) AS is_admin,
               (SELECT count(*) FROM auth.sessions s WHERE s.user_id = u.id) AS sessions,
               (SELECT count(*) FROM auth.mfa_factors f WHERE f.user_id = u.id AND f.status = 'verified') AS factors
        FROM auth.users u JOIN public.user_profiles p ON p.user_id = u.id
        WHERE u.id = $1 AND u.deleted_at IS NULL
        """,
        user_id,
    )
    return dict(row) if row is not None else None


async def find_emails(conn: Connection, user_ids: list[UUID]) -> dict[str, str]:
    rows = await conn.fetch("SELECT id, coalesce(email, '') AS email FROM auth.users WHERE id = ANY($1)", user_ids)
    return {str(row["id"]): row["email"] for row in rows}


async def count_users(conn: Connection) -> Record | None:
    return await conn.fetchrow(
        """
        SELECT count(*) AS users, count(*) FILTER (WHERE u.created_at > now() - interval '1 day') AS new_users,
               count(*) FILTER (WHERE p.subscription_tier <> 'free') AS paying
        FROM auth.users u JOIN public.user_profiles p ON p.user_id = u.id WHERE u.deleted_at IS NULL
        """
    )


async def list_switches(conn: Connection) -> list[dict[str, Any]]:
    """All that were ever set, the ones in force first."""
    rows = await conn.fetch(
        """
        SELECT s.name, s.is_on AND (s.expires_at IS NULL OR s.expires_at > now()) AS is_on, s.reason, s.set_by,
               s.set_at, s.expires_at, u.email
        FROM gateway.switches s LEFT JOIN auth.users u ON u.id::text = s.set_by
        ORDER BY 2 DESC, s.name
        """
    )
    return [dict(row) for row in rows]


async def list_audit(
    conn: Connection,
    *,
    subject: str,
    action: str,
    actor: str,
    before: tuple[datetime, UUID] | None,
    limit: int,
) -> list[dict[str, Any]]:
    rows = await conn.fetch(
        """
        SELECT a.id, a.at, a.actor, a.action, a.subject, a.before, a.after, a.request_id, u.email AS actor_email,
               s.email AS subject_email
        FROM gateway.audit_log a
        LEFT JOIN auth.users u ON u.id::text = a.actor
        LEFT JOIN auth.users s ON s.id::text = a.subject
        WHERE ($1 = '' OR a.subject = $1) AND ($2 = '' OR a.action = $2) AND ($3 = '' OR a.actor = $3)
          AND ($4::timestamptz IS NULL OR (a.at, a.id) < ($4, $5::uuid))
        ORDER BY a.at DESC, a.id DESC LIMIT $6
        """,
        subject,
        action,
        actor,
        *(before or (None, None)),
        limit,
    )
    return [dict(row) for row in rows]


# Samples ------------------------------------------------------------------------------------------------------------


async def add_traffic(conn: Connection, part: Traffic) -> None:
    """Add what this process answered since it last told to the current minute, which all replicas share."""
    await conn.execute(
        """
        INSERT INTO gateway.traffic_minutes AS t (minute, requests, errors, attempts, failures, buckets)
        VALUES (date_trunc('minute', now()), $1, $2, $3, $4, $5)
        ON CONFLICT (minute) DO UPDATE  -- replicas tell of the same minute at once: each adds its own part
        SET requests = t.requests + $1, errors = t.errors + $2, attempts = t.attempts + $3, failures = t.failures + $4,
            buckets = ARRAY(
                SELECT coalesce(o.n, 0) + coalesce(m.n, 0)
                FROM unnest(t.buckets) WITH ORDINALITY AS o(n, i)
                FULL JOIN unnest($5::bigint[]) WITH ORDINALITY AS m(n, i) USING (i) ORDER BY i
            )
        """,
        part.requests,
        part.errors,
        part.attempts,
        part.failures,
        [*part.buckets],
    )


async def list_traffic(conn: Connection) -> dict[datetime, Traffic]:
    rows = await conn.fetch(
        """
        SELECT minute, requests, errors, attempts, failures, buckets FROM gateway.traffic_minutes
        WHERE minute > now() - make_interval(mins => $1)
        """,
        MINUTES,
    )
    return {
        row["minute"]: Traffic(
            requests=row["requests"],
            errors=row["errors"],
            attempts=row["attempts"],
            failures=row["failures"],
            buckets=row["buckets"],
        )
        for row in rows
    }


async def claim_sample(conn: Connection, *, interval_s: int) -> int | None:
    """This interval's slot, for the one replica that takes it; None for the others."""
    return await conn.fetchval(
        """
        INSERT INTO gateway.health_samples (slot) VALUES (floor(extract(epoch FROM now()) / $1))
        ON CONFLICT (slot) DO NOTHING  -- one replica looks, the others rest
        RETURNING slot
        """,
        interval_s,
    )


async def save_sample(conn: Connection, slot: int, statuses: Mapping[str, Status]) -> None:
    await conn.execute("UPDATE gateway.health_samples SET statuses = $2 WHERE slot = $1", slot, dict(statuses))


async def list_samples(conn: Connection) -> list[tuple[datetime, Mapping[str, Status]]]:
    rows = await conn.fetch(
        "SELECT at, statuses FROM gateway.health_samples WHERE at > now() - make_interval(mins => $1) ORDER BY slot",
        MINUTES,
    )
    return [(row["at"], row["statuses"]) for row in rows]


async def delete_old_samples(conn: Connection) -> None:
    await conn.execute("DELETE FROM gateway.health_samples WHERE at < now() - interval '7 days'")
    await conn.execute("DELETE FROM gateway.traffic_minutes WHERE minute < now() - interval '7 days'")
