"""SQL of sign-in, one function per statement."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

import asyncpg

from libs.common.database import Connection, Record
from libs.common.ids import new_id
from services.gateway.auth.domain import AuthError, Session, User, email_exists


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
        raise email_exists() from None


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
        SELECT u.id, u.email, u.phone, u.email_confirmed_at, u.phone_confirmed_at, u.last_sign_in_at,
               u.confirmation_sent_at, u.invited_at, u.recovery_sent_at, u.email_change, u.email_change_sent_at,
               u.email_change_confirms_left, u.reauthentication_sent_at, u.banned_until, u.deleted_at,
               u.raw_app_meta_data, u.raw_user_meta_data, u.is_anonymous, u.created_at, u.updated_at,
               coalesce(
                   (SELECT jsonb_agg(jsonb_build_object(
                        'identity_id', i.id, 'id', i.provider_id, 'user_id', i.user_id,
                        'identity_data', i.identity_data, 'provider', i.provider,
                        'last_sign_in_at', i.last_sign_in_at, 'created_at', i.created_at,
                        'updated_at', i.updated_at, 'email', i.identity_data ->> 'email') ORDER BY i.created_at)
                    FROM auth.identities i WHERE i.user_id = u.id),
                   '[]'
               ) AS identities,
               coalesce(
                   (SELECT jsonb_agg(jsonb_build_object(
                        'id', f.id, 'friendly_name', f.friendly_name, 'factor_type', f.factor_type,
                        'status', f.status, 'created_at', f.created_at, 'updated_at', f.updated_at)
                        ORDER BY f.created_at)
                    FROM auth.mfa_factors f WHERE f.user_id = u.id),
                   '[]'
               ) AS factors
        FROM auth.users u
        WHERE u.id = $1 AND u.deleted_at IS NULL
        """,
        user_id,
    )
    return _user(row) if row is not None else None


async def find_user_id(conn: Connection, email: str) -> UUID | None:
    return await conn.fetchval("SELECT id FROM auth.users WHERE email = $1 AND deleted_at IS NULL", email)


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
    conn: Connection,
    *,
    user_id: UUID,
    password_hash: str | None = None,
    user_metadata: Mapping[str, Any],
    app_metadata: Mapping[str, Any] | None = None,
) -> None:
    """Merge metadata at the top level (null deletes a key); set a new password hash if there is one."""
    await conn.execute(
        """
        UPDATE auth.users
        SET encrypted_password = coalesce($2, encrypted_password),
            raw_user_meta_data = (raw_user_meta_data || $3) - $4::text[],
            raw_app_meta_data = (raw_app_meta_data || $5) - $6::text[],
            updated_at = now()
        WHERE id = $1
        """,
        user_id,
        password_hash,
        *_merge(user_metadata),
        *_merge(app_metadata or {}),
    )


def _merge(metadata: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What to add, and which keys to delete: null deletes at the top level alone."""
    return (
        {key: value for key, value in metadata.items() if value is not None},
        [key for key, value in metadata.items() if value is None],
    )


async def mark_email_confirmed(conn: Connection, user_id: UUID) -> None:
    """The address is the user's: on the account, in its metadata and on its identity."""
    await conn.execute(
        """
        UPDATE auth.users
        SET email_confirmed_at = coalesce(email_confirmed_at, now()), is_anonymous = false,
            raw_user_meta_data = raw_user_meta_data || '{"email_verified": true}', updated_at = now()
        WHERE id = $1
        """,
        user_id,
    )
    await conn.execute(
        """
        UPDATE auth.identities
        SET identity_data = identity_data || '{"email_verified": true}', updated_at = now()
        WHERE user_id = $1 AND provider = 'email'
        """,
        user_id,
    )


async def set_email(conn: Connection, *, user_id: UUID, email: str) -> None:
    """Give the account another address; raises AuthError email_exists. Its identity follows, or is made."""
    try:
        async with conn.savepoint():
            await conn.execute(
                """
                UPDATE auth.users
                SET email = $2, email_change = NULL, email_change_confirms_left = 0, is_anonymous = false,
                    raw_app_meta_data = raw_app_meta_data || '{"provider": "email", "providers": ["email"]}',
                    updated_at = now()
                WHERE id = $1
                """,
                user_id,
                email,
            )
    except asyncpg.UniqueViolationError:
        raise email_exists() from None
    await conn.execute(
        """
        INSERT INTO auth.identities (id, user_id, provider, provider_id, identity_data, last_sign_in_at)
        VALUES ($1, $2, 'email', $2::uuid::text,
                jsonb_build_object('sub', $2::uuid::text, 'email', $3::text, 'email_verified', false,
                                   'phone_verified', false), now())
        ON CONFLICT (provider, provider_id) DO UPDATE  -- most have one: an anonymous user has none until now
        SET identity_data = identities.identity_data || jsonb_build_object('email', $3::text), updated_at = now()
        """,
        new_id(),
        user_id,
        email,
    )


async def mark_email_change(conn: Connection, *, user_id: UUID, email: str, confirms: int) -> None:
    await conn.execute(
        """
        UPDATE auth.users
        SET email_change = $2, email_change_confirms_left = $3, email_change_sent_at = now(), updated_at = now()
        WHERE id = $1
        """,
        user_id,
        email,
        confirms,
    )


async def confirm_email_change(conn: Connection, user_id: UUID) -> tuple[str, int] | None:
    """Count one confirmation; return the new address and how many are still missing, None if no change is pending."""
    row = await conn.fetchrow(
        """
        UPDATE auth.users SET email_change_confirms_left = email_change_confirms_left - 1
        WHERE id = $1 AND email_change IS NOT NULL AND email_change_confirms_left > 0
        RETURNING email_change, email_change_confirms_left
        """,
        user_id,
    )
    return (row["email_change"], row["email_change_confirms_left"]) if row is not None else None


async def mark_mailed(conn: Connection, *, user_id: UUID, kind: str) -> None:
    await conn.execute(
        """
        UPDATE auth.users
        SET confirmation_sent_at = CASE WHEN $2 IN ('confirmation', 'invite') THEN now() ELSE confirmation_sent_at END,
            invited_at = CASE WHEN $2 = 'invite' THEN now() ELSE invited_at END,
            recovery_sent_at = CASE WHEN $2 = 'recovery' THEN now() ELSE recovery_sent_at END,
            reauthentication_sent_at =
                CASE WHEN $2 = 'reauthentication' THEN now() ELSE reauthentication_sent_at END
        WHERE id = $1
        """,
        user_id,
        kind,
    )


async def clear_password(conn: Connection, user_id: UUID) -> None:
    await conn.execute("UPDATE auth.users SET encrypted_password = NULL WHERE id = $1", user_id)


async def set_ban(conn: Connection, *, user_id: UUID, duration_s: float | None) -> None:
    """Ban for so long from now; None lifts it."""
    await conn.execute(
        "UPDATE auth.users SET banned_until = now() + make_interval(secs => $2), updated_at = now() WHERE id = $1",
        user_id,
        duration_s,
    )


async def set_phone(conn: Connection, *, user_id: UUID, phone: str, is_confirmed: bool) -> None:
    try:
        await conn.execute(
            """
            UPDATE auth.users
            SET phone = $2, phone_confirmed_at = CASE WHEN $3 THEN now() ELSE phone_confirmed_at END WHERE id = $1
            """,
            user_id,
            phone,
            is_confirmed,
        )
    except asyncpg.UniqueViolationError:
        raise AuthError(422, "phone_exists", "A user with this phone number has already been registered") from None


async def soft_delete_user(conn: Connection, user_id: UUID) -> None:
    """Keep the row, forget the person: the address becomes free, sessions, codes and identities go."""
    await conn.execute(
        """
        UPDATE auth.users
        SET deleted_at = now(), email = encode(sha256(coalesce(email, '')::bytea || id::text::bytea), 'hex'),
            phone = NULL, email_change = NULL, encrypted_password = NULL,
            raw_user_meta_data = '{}', raw_app_meta_data = '{}', updated_at = now()
        WHERE id = $1
        """,
        user_id,
    )
    await conn.execute("DELETE FROM auth.identities WHERE user_id = $1", user_id)
    await conn.execute("DELETE FROM auth.sessions WHERE user_id = $1", user_id)
    await conn.execute("DELETE FROM auth.one_time_tokens WHERE user_id = $1", user_id)
    await conn.execute("DELETE FROM auth.mfa_factors WHERE user_id = $1", user_id)


async def delete_user(conn: Connection, user_id: UUID) -> bool:
    return bool(await conn.execute("DELETE FROM auth.users WHERE id = $1", user_id))


async def list_users(conn: Connection, *, search: str, limit: int, offset: int) -> tuple[list[UUID], int]:
    """Ids newest first of those whose address contains `search`, and how many there are in all."""
    total = await conn.fetchval(
        "SELECT count(*) FROM auth.users WHERE deleted_at IS NULL AND ($1 = '' OR position($1 IN email) > 0)", search
    )
    rows = await conn.fetch(
        """
        SELECT id FROM auth.users WHERE deleted_at IS NULL AND ($1 = '' OR position($1 IN email) > 0)
        ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3
        """,
        search,
        limit,
        offset,
    )
    return [row["id"] for row in rows], int(total)


def _required(row: Record | None) -> Record:
    if row is None:
        raise RuntimeError("the statement returned no row")
    return row


def _user(row: Record) -> User:
    values = dict(row)
    return User(
        app_metadata=values.pop("raw_app_meta_data"),
        user_metadata=values.pop("raw_user_meta_data"),
        identities=tuple(values.pop("identities")),
        factors=tuple(values.pop("factors")),
        **values,
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
