"""SQL of idempotency keys."""

from collections.abc import Mapping
from uuid import UUID

from libs.common.database import Connection, Record

STUCK_AFTER_S = 15
"""A claim without an answer this old is a dead process's: every request ends, in success or failure, well before."""
KEPT_S = 86_400


async def claim_key(conn: Connection, *, user_id: UUID, key: str, request_hash: bytes, resource_id: UUID) -> Record:
    """Claim the key or take over a claim whose holder died; return the row, `is_mine` telling which.

    One statement: of two requests at the same instant one inserts, the other waits for it and reads its row.
    """
    row = await conn.fetchrow(
        """
        INSERT INTO gateway.idempotency_keys AS k (user_id, key, request_hash, resource_id)
        VALUES ($1, $2, $3, $4)
        -- ON CONFLICT closes the race of two requests with one key; it also locks the row for whoever takes it over.
        ON CONFLICT (user_id, key) DO UPDATE
        SET claimed_at = CASE
                WHEN k.response_status IS NULL AND k.request_hash = excluded.request_hash
                     AND k.claimed_at < now() - make_interval(secs => $5)
                THEN now() ELSE k.claimed_at END
        RETURNING request_hash, resource_id, response_status, response_body, response_headers,
                  claimed_at = now() AS is_mine
        """,
        user_id,
        key,
        request_hash,
        resource_id,
        STUCK_AFTER_S,
    )
    if row is None:
        raise RuntimeError("the claim returned no row")
    return row


async def store_response(
    conn: Connection, *, user_id: UUID, key: str, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> None:
    await conn.execute(
        """
        UPDATE gateway.idempotency_keys SET response_status = $3, response_body = $4, response_headers = $5
        WHERE user_id = $1 AND key = $2
        """,
        user_id,
        key,
        status,
        body,
        dict(headers or {}),
    )


async def give_back_key(conn: Connection, *, user_id: UUID, key: str) -> None:
    """End a claim without an answer: a refusal is not kept, and the next request takes the claim over at once."""
    await conn.execute(
        """
        UPDATE gateway.idempotency_keys SET claimed_at = '-infinity'
        WHERE user_id = $1 AND key = $2 AND response_status IS NULL
        """,
        user_id,
        key,
    )


async def delete_old_keys(conn: Connection) -> int:
    return await conn.execute(
        """
        DELETE FROM gateway.idempotency_keys WHERE (user_id, key) IN (
            SELECT user_id, key FROM gateway.idempotency_keys
            WHERE claimed_at < now() - make_interval(secs => $1) LIMIT 1000
        )
        """,
        KEPT_S,
    )
