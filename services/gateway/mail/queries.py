"""SQL of mail that waits to be handed over."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from libs.common.database import Connection, Record
from libs.common.ids import new_id

LEASE_S = 60
"""A sender that died gives its letter back after this time; a letter may so be sent twice, never not at all."""
GIVE_UP_AFTER_S = 86_400


async def insert_mail(conn: Connection, *, address: str, letter: str, content: Mapping[str, Any]) -> None:
    await conn.execute(
        "INSERT INTO gateway.mails (id, address, letter, content) VALUES ($1, $2, $3, $4)",
        new_id(),
        address,
        letter,
        dict(content),
    )


async def insert_mail_to_user(conn: Connection, *, user_id: UUID, letter: str, content: Mapping[str, Any]) -> None:
    """To the user's own address; nobody is written to who has none, or has left."""
    await conn.execute(
        """
        INSERT INTO gateway.mails (id, address, letter, content)
        SELECT $1, email, $3, $4 FROM auth.users WHERE id = $2 AND email <> '' AND deleted_at IS NULL
        """,
        new_id(),
        user_id,
        letter,
        dict(content),
    )


async def wants_usage_mail(conn: Connection, user_id: UUID) -> bool:
    """Whether the user did not decline mail about usage: `{"usage_mails": false}` in the account's own metadata."""
    return await conn.fetchval(
        """
        SELECT EXISTS (
            SELECT FROM auth.users WHERE id = $1 AND raw_user_meta_data -> 'usage_mails' IS DISTINCT FROM 'false'::jsonb
        )
        """,
        user_id,
    )


async def lease_mail(conn: Connection) -> Record | None:
    """The next letter that is due, for us alone until the lease ends."""
    return await conn.fetchrow(
        """
        UPDATE gateway.mails SET attempts = attempts + 1, next_attempt_at = now() + make_interval(secs => $1)
        WHERE id = (
            SELECT id FROM gateway.mails WHERE next_attempt_at <= now()
            ORDER BY next_attempt_at LIMIT 1
            FOR UPDATE SKIP LOCKED  -- two senders never take the same letter
        )
        RETURNING id, address, letter, content, attempts
        """,
        LEASE_S,
    )


async def delete_mail(conn: Connection, mail_id: UUID) -> None:
    await conn.execute("DELETE FROM gateway.mails WHERE id = $1", mail_id)


async def mark_failed(conn: Connection, *, mail_id: UUID, error: str, delay_s: float) -> None:
    await conn.execute(
        "UPDATE gateway.mails SET next_attempt_at = now() + make_interval(secs => $2), last_error = $3 WHERE id = $1",
        mail_id,
        delay_s,
        error,
    )


async def delete_hopeless(conn: Connection) -> int:
    """Letters nobody could be given for a day: their codes have ended long ago."""
    return await conn.execute(
        "DELETE FROM gateway.mails WHERE created_at < now() - make_interval(secs => $1)", GIVE_UP_AFTER_S
    )


async def oldest_unsent_age_s(conn: Connection) -> float:
    age = await conn.fetchval("SELECT extract(epoch FROM now() - min(created_at))::float8 FROM gateway.mails")
    return float(age or 0)
