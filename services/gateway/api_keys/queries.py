"""SQL of API keys."""

from typing import Any
from uuid import UUID

from libs.common.database import Connection, Record
from libs.common.errors import Conflict
from services.gateway.api_keys.domain import MAX_KEYS, NewKey


async def insert_key(
    conn: Connection, *, key_id: UUID, user_id: UUID, body: NewKey, key_hash: bytes, hint: str
) -> None:
    """Raises Conflict when the user has as many keys as there may be."""
    count = await conn.execute(
        """
        INSERT INTO gateway.api_keys (id, user_id, name, scopes, key_hash, hint, expires_at)
        SELECT $1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7)
        WHERE (SELECT count(*) FROM gateway.api_keys
               WHERE user_id = $2 AND id <> $1 AND (expires_at IS NULL OR expires_at > now())) < $8
        -- ON CONFLICT: the same request again, whose first answer was lost with its process, and the key with it
        ON CONFLICT (id) DO UPDATE SET key_hash = excluded.key_hash, hint = excluded.hint
        """,
        key_id,
        user_id,
        body.name,
        body.scopes,
        key_hash,
        hint,
        body.expires_in_s,
        MAX_KEYS,
    )
    if not count:
        raise Conflict(f"There are {MAX_KEYS} keys already; revoke one first.")


async def list_keys(conn: Connection, user_id: UUID) -> list[dict[str, Any]]:
    rows = await conn.fetch(
        """
        SELECT id, name, scopes, hint, created_at, expires_at, last_used_at
        FROM gateway.api_keys WHERE user_id = $1 ORDER BY created_at DESC, id DESC
        """,
        user_id,
    )
    return [dict(row) for row in rows]


async def find_key(conn: Connection, *, user_id: UUID, key_id: UUID) -> dict[str, Any] | None:
    row = await conn.fetchrow(
        """
        SELECT id, name, scopes, hint, created_at, expires_at, last_used_at,
               greatest(60, extract(epoch FROM expires_at - created_at))::int AS lifetime_s
        FROM gateway.api_keys WHERE user_id = $1 AND id = $2
        """,
        user_id,
        key_id,
    )
    return dict(row) if row is not None else None


async def end_key(conn: Connection, *, user_id: UUID, key_id: UUID, in_s: int) -> None:
    """Let a key end so soon, or sooner if it does anyway."""
    await conn.execute(
        """
        UPDATE gateway.api_keys SET expires_at = least(expires_at, now() + make_interval(secs => $3))
        WHERE user_id = $1 AND id = $2
        """,
        user_id,
        key_id,
        in_s,
    )


async def delete_key(conn: Connection, *, user_id: UUID, key_id: UUID) -> bool:
    return bool(await conn.execute("DELETE FROM gateway.api_keys WHERE user_id = $1 AND id = $2", user_id, key_id))


async def use_key(conn: Connection, key_hash: bytes) -> Record | None:
    """The living key with this hash and its user's address; notes that it was used."""
    return await conn.fetchrow(
        """
        UPDATE gateway.api_keys k SET last_used_at = now()
        FROM auth.users u
        WHERE k.key_hash = $1 AND (k.expires_at IS NULL OR k.expires_at > now())
          AND u.id = k.user_id AND u.deleted_at IS NULL
        RETURNING k.id, k.user_id, k.scopes, coalesce(u.email, '') AS email
        """,
        key_hash,
    )
