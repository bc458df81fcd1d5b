"""SQL of idempotency keys."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from uuid import UUID

from libs.common import outbox
from libs.common.database import Connection, Record
from libs.common.events import Event

STUCK_AFTER_S = 15
"""A claim without an answer this old is a dead process's: every request ends, in success or failure, well before."""
KEPT_S = 86_400


class Asked(NamedTuple):
    user_id: UUID
    key: str
    request_hash: bytes
    resource_id: UUID
    """The id to make the resource under if the key is new."""


class Kept(NamedTuple):
    user_id: UUID
    key: str
    status: int
    body: bytes
    headers: Mapping[str, str]


async def claim_keys(conn: Connection, asked: Sequence[Asked]) -> dict[tuple[UUID, str], Record]:
    """Claim the keys or take over claims whose holder died; return the rows, `is_mine` telling which.

    One statement: of two requests at the same instant one inserts, the other waits for it and reads its row. No key
    may be asked for twice.
    """
    rows = await conn.fetch(
        """
        INSERT INTO gateway.idempotency_keys AS k (user_id, key, request_hash, resource_id)
        SELECT user_id, key, request_hash, resource_id
        FROM unnest($1::uuid[], $2::text[], $3::bytea[], $4::uuid[]) AS asked(user_id, key, request_hash, resource_id)
        -- In one order for all who claim several, so that nobody deadlocks.
        ORDER BY user_id, key
        -- ON CONFLICT closes the race of two requests with one key; it also locks the row for whoever takes it over.
        ON CONFLICT (user_id, key) DO UPDATE
        SET claimed_at = CASE
                WHEN k.response_status IS NULL AND k.request_hash = excluded.request_hash
                     AND k.claimed_at < now() - make_interval(secs => $5)
                THEN now() ELSE k.claimed_at END
        RETURNING user_id, key, request_hash, resource_id, response_status, response_body, response_headers,
                  claimed_at = now() AS is_mine
        """,
        [one.user_id for one in asked],
        [one.key for one in asked],
        [one.request_hash for one in asked],
        [one.resource_id for one in asked],
        STUCK_AFTER_S,
    )
    return {(UUID(int=row["user_id"].int), row["key"]): row for row in rows}


async def store_responses(conn: Connection, kept: Sequence[Kept]) -> None:
    await conn.execute(
        """
        UPDATE gateway.idempotency_keys AS k
        SET response_status = kept.status, response_body = kept.body, response_headers = kept.headers
        FROM unnest($1::uuid[], $2::text[], $3::integer[], $4::bytea[], $5::jsonb[])
            AS kept(user_id, key, status, body, headers)
        WHERE (k.user_id, k.key) = (kept.user_id, kept.key)
        """,
        *_columns(kept),
    )


async def store_responses_with(
    conn: Connection, kept: Sequence[Kept], events: Sequence[tuple[Event, str | None]]
) -> None:
    """The same together with the events of what was made, in one statement: both are there, or neither."""
    await outbox.add_traced_with(
        conn,
        events,
        """
        UPDATE gateway.idempotency_keys AS k
        SET response_status = kept.status, response_body = kept.body, response_headers = kept.headers
        FROM unnest($6::uuid[], $7::text[], $8::integer[], $9::bytea[], $10::jsonb[])
            AS kept(user_id, key, status, body, headers)
        WHERE (k.user_id, k.key) = (kept.user_id, kept.key)
        """,
        *_columns(kept),
    )


def _columns(kept: Sequence[Kept]) -> Sequence[list[Any]]:
    return (
        [one.user_id for one in kept],
        [one.key for one in kept],
        [one.status for one in kept],
        [one.body for one in kept],
        [dict(one.headers) for one in kept],
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


async def give_abandoned_keys_back(conn: Connection) -> int:
    """End the claims of requests that ended without a word; return how many.

    A process died, or a claim reached the database after whoever asked had got an answer by another try.
    """
    return await conn.execute(
        """
        UPDATE gateway.idempotency_keys SET claimed_at = '-infinity'
        WHERE (user_id, key) IN (
            SELECT user_id, key FROM gateway.idempotency_keys
            WHERE claimed_at BETWEEN now() - interval '1 hour' AND now() - make_interval(secs => $1)
                AND response_status IS NULL
            -- SKIP LOCKED: who is being claimed at this moment is not abandoned.
            FOR UPDATE SKIP LOCKED
        )
        """,
        STUCK_AFTER_S,
    )


async def delete_old_keys(conn: Connection) -> int:
    return await conn.execute(
        """
        DELETE FROM gateway.idempotency_keys WHERE (user_id, key) IN (
            SELECT user_id, key FROM gateway.idempotency_keys
            WHERE first_used_at < now() - make_interval(secs => $1) LIMIT 1000
        )
        """,
        KEPT_S,
    )
