"""Keys as this replica knows them: read at most every few seconds, so that a revoked one ends everywhere in time."""

import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from libs.common.database import Database
from services.gateway.api_keys import queries
from services.gateway.api_keys.domain import claims_of, digest
from services.gateway.domain import Identity, InvalidAccessToken

TTL_S: Final = 3.0
"""The promise is that a revoked key ends everywhere within 5 s."""
_CACHE_SIZE: Final = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyHolder:
    identity: Identity
    scopes: tuple[str, ...]


class ApiKeyCache:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: OrderedDict[bytes, tuple[float, KeyHolder | None]] = OrderedDict()

    async def holder(self, secret: str) -> KeyHolder:
        """Who a key acts for. Raises InvalidAccessToken for one that is unknown, revoked or has expired."""
        key_hash = digest(secret)
        entry = self._entries.get(key_hash)
        if entry is None or entry[0] <= time.monotonic():
            entry = (time.monotonic() + TTL_S, await self._read(key_hash))
            self._entries[key_hash] = entry
            if len(self._entries) > _CACHE_SIZE:
                self._entries.popitem(last=False)
        if entry[1] is None:
            raise InvalidAccessToken("The API key is not known, was revoked, or has expired.")
        return entry[1]

    async def _read(self, key_hash: bytes) -> KeyHolder | None:
        async with self._database.transaction() as conn:
            row = await queries.use_key(conn, key_hash)
        if row is None:
            return None
        claims = claims_of(row["user_id"], row["id"])
        identity = Identity(user_id=row["user_id"], session_id=None, email=row["email"], claims=claims)
        return KeyHolder(identity=identity, scopes=tuple(row["scopes"]))
