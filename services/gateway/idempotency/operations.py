"""Claiming keys: one statement, handed a connection."""

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from libs.common.database import Connection, Record
from libs.common.errors import Invalid, VentureError
from libs.common.ids import new_id
from services.gateway.domain import IdempotencyKeyInFlight, IdempotencyKeyReused
from services.gateway.idempotency import queries
from services.gateway.idempotency.queries import Asked

_KEY: Final = re.compile(r"[\x21-\x7e]{1,255}")


def check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise Invalid("Idempotency-Key must be 1 to 255 visible ASCII characters.")


def hash_request(method: str, path: str, body: bytes) -> bytes:
    return hashlib.sha256(f"{method} {path}\n".encode() + body).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The key is ours: make the resource under this id. Or `replay` is the answer that was given before."""

    resource_id: UUID
    replay: bytes | None = None
    replay_status: int = 0
    replay_headers: Mapping[str, str] = field(default_factory=dict[str, str])


def unclaimed() -> Claim:
    """What a request without a key works under: a new id, and no memory of it."""
    return Claim(resource_id=new_id())


async def claim_keys(conn: Connection, asked: Sequence[Asked]) -> list[Claim | VentureError]:
    """The verdict on each: a claim, or why there is none.

    IdempotencyKeyReused is for another body under the key, IdempotencyKeyInFlight for while the first one works.
    """
    rows = await queries.claim_keys(conn, asked)
    return [_verdict(rows[one.user_id, one.key], one.request_hash) for one in asked]


def _verdict(row: Record, request_hash: bytes) -> Claim | VentureError:
    if row["request_hash"] != request_hash:
        return IdempotencyKeyReused("This Idempotency-Key was used with another request body.")
    if row["response_status"] is not None:
        return Claim(
            resource_id=row["resource_id"],
            replay=row["response_body"],
            replay_status=row["response_status"],
            replay_headers=row["response_headers"] or {},
        )
    if not row["is_mine"]:
        return IdempotencyKeyInFlight(
            "A request with this Idempotency-Key is still being worked on; try again shortly."
        )
    return Claim(resource_id=row["resource_id"])
