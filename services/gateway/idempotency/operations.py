"""Claiming keys: one transaction, handed in."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

from libs.common.database import Connection
from libs.common.errors import Invalid
from libs.common.ids import new_id
from services.gateway.domain import IdempotencyKeyInFlight, IdempotencyKeyReused
from services.gateway.idempotency import queries

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


async def claim_key(conn: Connection, *, user_id: UUID, key: str, request_hash: bytes) -> Claim:
    """Raises IdempotencyKeyReused for another body under the key, IdempotencyKeyInFlight while the first one works."""
    row = await queries.claim_key(conn, user_id=user_id, key=key, request_hash=request_hash, resource_id=new_id())
    if row["request_hash"] != request_hash:
        raise IdempotencyKeyReused("This Idempotency-Key was used with another request body.")
    if row["response_status"] is not None:
        return Claim(
            resource_id=row["resource_id"],
            replay=row["response_body"],
            replay_status=row["response_status"],
            replay_headers=row["response_headers"] or {},
        )
    if not row["is_mine"]:
        raise IdempotencyKeyInFlight("A request with this Idempotency-Key is still being worked on; try again shortly.")
    return Claim(resource_id=row["resource_id"])
