"""SQL of sign-in, one function per statement."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from libs.common.database import Connection, Record
from libs.common.ids import new_id
from services.gateway.auth.domain import AuthError, Session, User


async def insert_user(
    conn: Connection,
    *,
    user_id: UUID,
    email: str | None,
    password_hash: str | None,
    is_confirmed: bool,
    user_metadata: Mapping[str, Any],
    app_metadata: Mapping[str, Any],
    is_anonymous: bool = False,
) -> None:
    """Create the account; a trigger creates its profile. Raises AuthError email_exists if the address is taken."""
    try:
        await conn.execute(
            """
            INSERT INTO auth.users (
                id, email, encrypted_password, email_confirmed_at, raw_user_meta_data, raw_app_meta_data, is_anonymous
            ) VALUES ($1, $2, $3, CASE WHEN $4 THEN now() END, $5, $6, $7)
            """,
            user_id,
            email,
            password_hash,
            is_confirmed,
            dict(user_metadata),
            dict(app_metadata),
            is_anonymous,
        )
    except asyncpg.UniqueViolationError:
        raise AuthError(422, "email_exists", "A user with this email address has already been registered") from None


async def insert_email_identity(
    conn: Connection, *, user_id: UUID, email: str, is_confirmed: bool, user_metadata: Mapping[str, Any]
) -> None:
    await conn.execute(
        """
        INSERT INTO auth.identities (id, user_id, provider, provider_id, identity_data, last_sign_in_at)
        VALUES ($1, $2, 'email', $2::uuid::text, $3, now())
        """,
        new_id(),
        user_id,
        {
            **user_metadata,
            "sub": str(user_id),
            "email": email,
            "email_verified": is_confirmed,
            "phone_verified": False,
        },
    )


async def find_user(conn: Connection, user_id: UUID) -> User | None:
    row = await conn.fetchrow(
        """
        SELECT u.id, u.email, u.email_confirmed_at, u.last_sign_in_at, u.confirmation_sent_at, u.invited_at,
               u.recovery_sent_at, u.banned_until, u.raw_app_meta_data, u.raw_user_meta_data, u.is_anonymous,
               u.created_at, u.updated_at,
               coalesce(
                   (SELECT jsonb_agg(jsonb_build_object(
                        'identity_id', i.id, 'id', i.provider_id, 'user_id', i.user_id,
                        'identity_data', i.identity_data, 'provider', i.provider,
                        'last_sign_in_at', i.last_sign_in_at, 'created_at', i.created_at,
                        'updated_at', i.updated_at, 'email', i.identity_data ->> 'email') ORDER BY i.created_at)
                    FROM auth.identities i WHERE i.user_id = u.id),
                   '[]'
               ) AS identities
        FROM auth.users u
        WHERE u.id = $1 AND u.deleted_at IS NULL
        """,
        user_id,
    )
    return _user(row) if row is not None else None


async def find_credentials(conn: Connection, email: str) -> tuple[UUID, str | None] | None:
    """The account of an address and its password hash (None: it has no password)."""
    row = await conn.fetchrow(
        "SELECT id, encrypted_password FROM auth.users WHERE email = $1 AND deleted_at IS NULL", email
    )
    return (row["id"], row["encrypted_password"]) if row is not None else None


async def mark_signed_in(conn: Connection, user_id: UUID) -> None:
    await conn.execute("UPDATE auth.users SET last_sign_in_at = now() WHERE id = $1", user_id)


async def insert_session(conn: Connection, *, user_id: UUID, refresh_key: bytes, method: str) -> Session:
    row = await conn.fetchrow(
        """
        INSERT INTO auth.sessions (id, user_id, refresh_key, amr)
        VALUES ($1, $2, $3,
                jsonb_build_array(
                    jsonb_build_object('method', $4::text, 'timestamp', extract(epoch FROM now())::bigint)))
        RETURNING id, user_id, aal, amr, refresh_key, refresh_counter, refreshed_at
        """,
        new_id(),
        user_id,
        refresh_key,
        method,
    )
    return _session(_required(row))


async def lock_session(conn: Connection, session_id: UUID) -> tuple[Session, datetime] | None:
    """The session and the database's time. FOR UPDATE puts simultaneous refreshes in a row: one sees the other's."""
    row = await conn.fetchrow(
        """
        SELECT id, user_id, aal, amr, refresh_key, refresh_counter, refreshed_at, clock_timestamp() AS now
        FROM auth.sessions WHERE id = $1 AND (not_after IS NULL OR not_after > now())
        FOR UPDATE
        """,
        session_id,
    )
    return (_session(row), row["now"]) if row is not None else None


async def advance_session(conn: Connection, session_id: UUID) -> None:
    await conn.execute(
        """
        UPDATE auth.sessions SET refresh_counter = refresh_counter + 1, refreshed_at = clock_timestamp() WHERE id = $1
        """,
        session_id,
    )


async def delete_sessions(conn: Connection, *, user_id: UUID, session_id: UUID | None, scope: str) -> int:
    """End sessions of a user: `local` this one, `others` all but this one, `global` all."""
    return await conn.execute(
        """
        DELETE FROM auth.sessions
        WHERE user_id = $1
          AND CASE $3 WHEN 'local' THEN id = $2 WHEN 'others' THEN id IS DISTINCT FROM $2 ELSE true END
        """,
        user_id,
        session_id,
        scope,
    )


async def session_exists(conn: Connection, session_id: UUID) -> bool:
    return bool(
        await conn.fetchval(
            "SELECT true FROM auth.sessions WHERE id = $1 AND (not_after IS NULL OR not_after > now())", session_id
        )
    )


async def update_user(
    conn: Connection, *, user_id: UUID, password_hash: str | None, user_metadata: Mapping[str, Any]
) -> None:
    """Merge metadata at the top level (null deletes a key); set a new password hash if there is one."""
    await conn.execute(
        """
        UPDATE auth.users
        SET encrypted_password = coalesce($2, encrypted_password),
            raw_user_meta_data = jsonb_strip_nulls(raw_user_meta_data || $3),
            updated_at = now()
        WHERE id = $1
        """,
        user_id,
        password_hash,
        dict(user_metadata),
    )


async def delete_user(conn: Connection, user_id: UUID) -> bool:
    return bool(await conn.execute("DELETE FROM auth.users WHERE id = $1", user_id))


async def list_users(conn: Connection, *, limit: int, offset: int) -> tuple[list[UUID], int]:
    """Ids newest first, and how many there are in all."""
    total = await conn.fetchval("SELECT count(*) FROM auth.users WHERE deleted_at IS NULL")
    rows = await conn.fetch(
        "SELECT id FROM auth.users WHERE deleted_at IS NULL ORDER BY created_at DESC, id LIMIT $1 OFFSET $2",
        limit,
        offset,
    )
    return [row["id"] for row in rows], int(total)


def _required(row: Record | None) -> Record:
    if row is None:
        raise RuntimeError("the statement returned no row")
    return row


def _user(row: Record) -> User:
    return User(
        id=row["id"],
        email=row["email"],
        email_confirmed_at=row["email_confirmed_at"],
        last_sign_in_at=row["last_sign_in_at"],
        confirmation_sent_at=row["confirmation_sent_at"],
        invited_at=row["invited_at"],
        recovery_sent_at=row["recovery_sent_at"],
        banned_until=row["banned_until"],
        app_metadata=row["raw_app_meta_data"],
        user_metadata=row["raw_user_meta_data"],
        is_anonymous=row["is_anonymous"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        identities=tuple(row["identities"]),
    )


def _session(row: Record) -> Session:
    return Session(
        id=row["id"],
        user_id=row["user_id"],
        aal=row["aal"],
        amr=tuple(row["amr"]),
        refresh_key=row["refresh_key"],
        refresh_counter=row["refresh_counter"],
        refreshed_at=row["refreshed_at"],
    )
