"""One answer for one key, around whatever makes it: claim, make, keep. Kept answers are sealed: they may be secret."""

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from fastapi import Request, Response

from libs.common.database import Connection, Database
from libs.common.errors import Conflict, VentureError
from libs.common.ids import new_id
from libs.common.together import HELP_AFTER_S, Together
from services.gateway.domain import Identity
from services.gateway.idempotency import operations, queries
from services.gateway.idempotency.operations import Claim
from services.gateway.idempotency.queries import Asked, Kept

LANES: Final = 4
_NONCE_BYTES: Final = 12
_KEPT_HEADERS: Final = frozenset({"content-type", "location", "content-disposition"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What came of the work. `record` commits together with the answer: both are there, or neither."""

    response: Response
    record: Callable[[Connection], Awaitable[None]] | None = None

    @property
    def is_kept(self) -> bool:
        """A refusal is not kept: it invites another try."""
        return 200 <= self.response.status_code < 300  # noqa: PLR2004


Work = Callable[[UUID], Awaitable[Made]]
"""Makes the resource under the id it is given; called again with it after a crash, it makes no second one."""


class Claims:
    """Claims that arrive while a statement is under way share the next one; each gets its own verdict."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._together = Together(
            self._claim, lanes=LANES, help_after_s=HELP_AFTER_S, name=lambda asked: (asked.user_id, asked.key)
        )

    async def claim(self, *, user_id: UUID, key: str, request_hash: bytes) -> Claim:
        """Raises IdempotencyKeyReused for another body under the key, IdempotencyKeyInFlight while the first works."""
        return await self._together.ask(Asked(user_id, key, request_hash, new_id()))

    async def give_back(self, *, user_id: UUID, key: str) -> None:
        """Let the same request be tried again at once, under the same id: what it may have got is found again."""
        async with self._database.statement() as conn:
            await queries.give_back_key(conn, user_id=user_id, key=key)

    async def _claim(self, asked: Sequence[Asked]) -> list[Claim | VentureError]:
        async with self._database.statement() as conn:
            return await operations.claim_keys(conn, asked)


class Answers:
    def __init__(self, database: Database, *, secret: str) -> None:
        self._database = database
        self.claims = Claims(database)
        # A key of its own, from a secret that is not in the database.
        kdf = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"answers kept for idempotency keys")
        self._seal = AESGCM(kdf.derive(secret.encode()))

    async def give(self, request: Request, identity: Identity, work: Work) -> Response:
        """The answer of the first request with this Idempotency-Key; without a key, of this one."""
        key = request.headers.get("idempotency-key")
        if key is None:
            return await self.without_key(work)
        operations.check_key(key)
        request_hash = operations.hash_request(request.method, request.scope["path"], await request.body())
        claim = await self.claims.claim(user_id=identity.user_id, key=key, request_hash=request_hash)
        if claim.replay is not None:
            return Response(self._open(claim.replay, identity.user_id), claim.replay_status, claim.replay_headers)
        return await self._make_and_keep(identity.user_id, key, claim.resource_id, work)

    async def without_key(self, work: Work) -> Response:
        made = await work(new_id())
        if made.record is not None:
            async with self._database.transaction() as conn:
                await made.record(conn)
        return made.response

    async def _make_and_keep(self, user_id: UUID, key: str, resource_id: UUID, work: Work) -> Response:
        is_kept = False
        try:
            made = await work(resource_id)
            is_kept = made.is_kept
        finally:
            if not is_kept:
                await self.claims.give_back(user_id=user_id, key=key)
        response = made.response
        if is_kept:
            async with self._database.transaction() as conn:
                if made.record is not None:
                    await made.record(conn)
                kept = Kept(
                    user_id,
                    key,
                    status=response.status_code,
                    body=self._close(bytes(response.body), user_id),
                    headers={name: value for name, value in response.headers.items() if name in _KEPT_HEADERS},
                )
                await queries.store_responses(conn, [kept])
        return response

    def _close(self, body: bytes, owner: UUID) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._seal.encrypt(nonce, body, owner.bytes)

    def _open(self, sealed: bytes, owner: UUID) -> bytes:
        try:
            return self._seal.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], owner.bytes)
        except InvalidTag:  # the secret was changed since
            raise Conflict("The answer kept for this Idempotency-Key cannot be read any more.") from None
