"""SQL of profiles, standings, erasures and user events."""

from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

from libs.common.database import Connection, Record
from libs.common.events.billing import SubscriptionChanged


async def find_profile(conn: Connection, user_id: UUID) -> dict[str, Any] | None:
    row = await conn.fetchrow(
        """
        SELECT user_id, name, role, vertical, stack, tone, risk_tolerance, kpi_focus, perspective, company_context,
               timezone, subscription_tier, subscription_status, subscription_period_end, created_at, updated_at
        FROM public.user_profiles WHERE user_id = $1
        """,
        user_id,
    )
    return dict(row) if row is not None else None


async def find_profiles(conn: Connection, user_ids: Sequence[UUID]) -> dict[UUID, Mapping[str, Any]]:
    """What a prompt may tell of each user."""
    rows = await conn.fetch(
        """
        SELECT user_id, name, role, vertical, stack, tone, risk_tolerance, kpi_focus, perspective, company_context
        FROM public.user_profiles WHERE user_id = ANY($1)
        """,
        list(user_ids),
    )
    return {UUID(int=row["user_id"].int): dict(row) for row in rows}


async def update_profile(conn: Connection, user_id: UUID, changes: Mapping[str, Any]) -> None:
    await conn.execute(
        """
        UPDATE public.user_profiles SET
            name = coalesce($2, name), role = coalesce($3, role), vertical = coalesce($4, vertical),
            stack = coalesce($5, stack), tone = coalesce($6, tone), risk_tolerance = coalesce($7, risk_tolerance),
            kpi_focus = coalesce($8, kpi_focus), perspective = coalesce($9, perspective),
            company_context = coalesce($10, company_context), timezone = coalesce($11, timezone)
        WHERE user_id = $1
        """,
        user_id,
        *(
            changes.get(name)
            for name in (
                "name",
                "role",
                "vertical",
                "stack",
                "tone",
                "risk_tolerance",
                "kpi_focus",
                "perspective",
                "company_context",
                "timezone",
            )
        ),
    )


async def list_standings(conn: Connection, user_ids: Sequence[UUID]) -> dict[UUID, Record]:
    """Whoever is not among them has no account."""
    rows = await conn.fetch(
        """
        SELECT u.id, p.subscription_tier, p.premium_features, u.raw_app_meta_data,
               coalesce(u.banned_until > now(), false) AS is_banned
        FROM auth.users u JOIN public.user_profiles p ON p.user_id = u.id
        WHERE u.id = ANY($1) AND u.deleted_at IS NULL
        """,
        user_ids,
    )
    return {row["id"]: row for row in rows}


async def delete_user(conn: Connection, user_id: UUID) -> bool:
    """The cascade takes sessions, profile and keys; the profile's trigger tells the other services."""
    return bool(await conn.execute("DELETE FROM auth.users WHERE id = $1", user_id))


async def apply_subscription(conn: Connection, event: SubscriptionChanged) -> bool:
    """Take over the plan unless a newer version already is; the row's trigger tells everybody what it means."""
    return bool(
        await conn.execute(
            """
            UPDATE public.user_profiles
            SET subscription_tier = $3, subscription_status = $4, stripe_customer_id = $5,
                subscription_period_start = $6, subscription_period_end = $7, subscription_version = $2
            WHERE user_id = $1 AND subscription_version < $2
            """,
            event.user_id,
            event.version,
            event.tier,
            event.status,
            event.stripe_customer_id,
            event.current_period_start,
            event.current_period_end,
        )
    )


async def mark_erased(conn: Connection, *, user_id: UUID, service: str) -> None:
    await conn.execute(
        """
        INSERT INTO gateway.erasures (user_id, billing_at, metering_at, agents_at)
        VALUES ($1, CASE $2 WHEN 'billing' THEN now() END, CASE $2 WHEN 'metering' THEN now() END,
                CASE $2 WHEN 'agents' THEN now() END)
        ON CONFLICT (user_id) DO UPDATE  -- the trigger of the deletion made the row; the services' answers race
        SET billing_at = coalesce(erasures.billing_at, excluded.billing_at),
            metering_at = coalesce(erasures.metering_at, excluded.metering_at),
            agents_at = coalesce(erasures.agents_at, excluded.agents_at)
        """,
        user_id,
        service,
    )


async def find_erasure(conn: Connection, user_id: UUID) -> dict[str, Any] | None:
    row = await conn.fetchrow(
        "SELECT user_id, requested_at, billing_at, metering_at, agents_at FROM gateway.erasures WHERE user_id = $1",
        user_id,
    )
    return dict(row) if row is not None else None


async def insert_user_events(conn: Connection, events: Sequence[tuple[UUID, str, Mapping[str, Any]]]) -> None:
    """Add (user, type, data) to their users' streams, each under the next number; nothing for users who are gone."""
    await conn.execute(
        """
        WITH told AS (
            SELECT user_id, type, data, row_number() OVER (PARTITION BY user_id ORDER BY place) AS nth
            FROM unnest($1::uuid[], $2::text[], $3::jsonb[]) WITH ORDINALITY AS t(user_id, type, data, place)
        ), head AS (
            INSERT INTO gateway.user_event_heads AS h (user_id, last_seq)
            SELECT u.id, n.count FROM auth.users AS u
            JOIN (SELECT user_id, count(*) FROM told GROUP BY user_id) AS n ON n.user_id = u.id
            ORDER BY u.id
            FOR KEY SHARE OF u  -- a deletion at the same time waits for this row, and then takes it along
            -- ON CONFLICT makes two events of one user take turns: the second waits for the first one's commit
            ON CONFLICT (user_id) DO UPDATE SET last_seq = h.last_seq + EXCLUDED.last_seq
            RETURNING user_id, last_seq
        )
        INSERT INTO gateway.user_events (user_id, seq, type, data)
        SELECT user_id, head.last_seq - count(*) OVER (PARTITION BY user_id) + told.nth, told.type, told.data
        FROM told JOIN head USING (user_id)
        """,
        [user_id for user_id, _, _ in events],
        [event_type for _, event_type, _ in events],
        [dict(data) for _, _, data in events],
    )


async def list_user_events(conn: Connection, *, user_id: UUID, after: int, limit: int) -> list[dict[str, Any]]:
    rows = await conn.fetch(
        """
        SELECT seq, type, data, at FROM gateway.user_events
        WHERE user_id = $1 AND seq > $2 ORDER BY seq LIMIT $3
        """,
        user_id,
        after,
        limit,
    )
    return [dict(row) for row in rows]


async def latest_user_event(conn: Connection, user_id: UUID) -> int:
    """The number of the user's newest event, 0 before the first."""
    last = await conn.fetchval("SELECT last_seq FROM gateway.user_event_heads WHERE user_id = $1", user_id)
    return int(last or 0)


async def list_heads(conn: Connection, user_ids: Sequence[UUID]) -> dict[UUID, int]:
    """The numbers of these users' newest events."""
    rows = await conn.fetch("SELECT user_id, last_seq FROM gateway.user_event_heads WHERE user_id = ANY($1)", user_ids)
    return {row["user_id"]: row["last_seq"] for row in rows}


async def delete_old_user_events(conn: Connection) -> int:
    return await conn.execute(
        """
        DELETE FROM gateway.user_events WHERE (user_id, seq) IN (
            SELECT user_id, seq FROM gateway.user_events WHERE at < now() - interval '7 days' LIMIT 5000
        )
        """
    )
