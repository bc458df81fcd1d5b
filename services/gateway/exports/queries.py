"""SQL of what the gateway itself holds about a user, without hashes and secrets."""

from typing import Any
from uuid import UUID

from libs.common.database import Connection

EVENTS_SHOWN = 10_000


async def find_account(conn: Connection, user_id: UUID) -> dict[str, Any] | None:
    row = await conn.fetchrow(
        """
        SELECT id, email, phone, email_confirmed_at, invited_at, last_sign_in_at, raw_app_meta_data AS app_metadata,
               raw_user_meta_data AS user_metadata, is_anonymous, created_at, updated_at
        FROM auth.users WHERE id = $1
        """,
        user_id,
    )
    return dict(row) if row is not None else None


async def list_sessions(conn: Connection, user_id: UUID) -> list[dict[str, Any]]:
    rows = await conn.fetch(
        "SELECT id, aal, amr, created_at, refreshed_at FROM auth.sessions WHERE user_id = $1 ORDER BY created_at",
        user_id,
    )
    return [dict(row) for row in rows]


async def list_factors(conn: Connection, user_id: UUID) -> list[dict[str, Any]]:
    rows = await conn.fetch(
        """
        SELECT id, friendly_name, factor_type, status, created_at
        FROM auth.mfa_factors WHERE user_id = $1 ORDER BY created_at
        """,
        user_id,
    )
    return [dict(row) for row in rows]


async def list_events(conn: Connection, user_id: UUID) -> list[dict[str, Any]]:
    rows = await conn.fetch(
        """
        SELECT seq, type, data, at FROM gateway.user_events WHERE user_id = $1 ORDER BY seq DESC LIMIT $2
        """,
        user_id,
        EVENTS_SHOWN,
    )
    return [dict(row) for row in rows]
