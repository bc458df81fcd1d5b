"""SQL of users as admins see them, and of the audit log."""

from datetime import datetime
from typing import Any
from uuid import UUID

from libs.common.database import Connection, Record


async def list_users(
    conn: Connection, *, search: str, before: tuple[datetime, UUID] | None, limit: int
) -> list[Record]:
    """Newest first, behind the cursor; `search` is part of an address or name, or a whole id."""
    return await conn.fetch(
        """
        SELECT u.id, u.email, u.created_at, u.last_sign_in_at, u.email_confirmed_at, u.is_anonymous,
               coalesce(u.banned_until > now(), false) AS is_banned, p.name, p.subscription_tier,
               p.subscription_status, p.premium_features
        FROM auth.users u JOIN public.user_profiles p ON p.user_id = u.id
        WHERE u.deleted_at IS NULL
          AND ($1 = '' OR position($1 IN u.email) > 0 OR position($1 IN lower(p.name)) > 0 OR u.id::text = $1)
          AND ($2::timestamptz IS NULL OR (u.created_at, u.id) < ($2, $3::uuid))
        ORDER BY u.created_at DESC, u.id DESC LIMIT $4
        """,
        search,
        *(before or (None, None)),
        limit,
    )


async def find_user(conn: Connection, user_id: UUID) -> Record | None:
    return await conn.fetchrow(
        """
        SELECT u.id, u.email, u.created_at, u.last_sign_in_at, u.email_confirmed_at, u.is_anonymous, u.banned_until,
               u.raw_app_meta_data AS app_metadata, coalesce(u.banned_until > now(), false) AS is_banned, p.name,
               p.subscription_tier, p.subscription_status, p.subscription_period_end, p.stripe_customer_id,
               p.premium_features, p.entitlements_version,
               (SELECT count(*) FROM auth.sessions s WHERE s.user_id = u.id) AS sessions,
               (SELECT count(*) FROM gateway.api_keys k WHERE k.user_id = u.id) AS api_keys
        FROM auth.users u JOIN public.user_profiles p ON p.user_id = u.id
        WHERE u.id = $1 AND u.deleted_at IS NULL
        """,
        user_id,
    )


async def lock_user(conn: Connection, user_id: UUID) -> dict[str, Any] | None:
    """What an admin can change of the user. FOR UPDATE: what is audited as before is what the change met."""
    row = await conn.fetchrow(
        """
        SELECT p.subscription_tier AS tier, p.subscription_status AS status,
               p.premium_features -> 'admin' = 'true'::jsonb AS admin, coalesce(u.banned_until > now(), false) AS banned
        FROM public.user_profiles p JOIN auth.users u ON u.id = p.user_id
        WHERE p.user_id = $1 AND u.deleted_at IS NULL
        FOR UPDATE
        """,
        user_id,
    )
    return {**row, "admin": bool(row["admin"])} if row is not None else None


async def set_tier(conn: Connection, *, user_id: UUID, tier: str) -> None:
    await conn.execute(
        """
        UPDATE public.user_profiles
        SET subscription_tier = $2, subscription_status = CASE $2 WHEN 'free' THEN 'inactive' ELSE 'active' END
        WHERE user_id = $1
        """,
        user_id,
        tier,
    )


async def set_admin(conn: Connection, *, user_id: UUID, is_admin: bool) -> None:
    await conn.execute(
        """
        UPDATE public.user_profiles
        SET premium_features = (premium_features - 'admin') || CASE WHEN $2 THEN '{"admin": true}'::jsonb ELSE '{}' END
        WHERE user_id = $1
        """,
        user_id,
        is_admin,
    )


async def set_banned(conn: Connection, *, user_id: UUID, is_banned: bool) -> None:
    """A ban ends the sessions at once; access tokens end at their next use."""
    await conn.execute(
        "UPDATE auth.users SET banned_until = CASE WHEN $2 THEN now() + interval '100 years' END WHERE id = $1",
        user_id,
        is_banned,
    )
    if is_banned:
        await conn.execute("DELETE FROM auth.sessions WHERE user_id = $1", user_id)


async def list_audit(
    conn: Connection, *, subject: str, actor: str, action: str, before: tuple[datetime, UUID] | None, limit: int
) -> list[Record]:
    return await conn.fetch(
        """
        SELECT id, at, actor, action, subject, before, after, request_id FROM gateway.audit_log
        WHERE ($1 = '' OR subject = $1) AND ($2 = '' OR actor = $2) AND ($3 = '' OR action = $3)
          AND ($4::timestamptz IS NULL OR (at, id) < ($4, $5::uuid))
        ORDER BY at DESC, id DESC LIMIT $6
        """,
        subject,
        actor,
        action,
        *(before or (None, None)),
        limit,
    )
