"""HTTP of a user's API keys."""

from typing import Any
from uuid import UUID

from fastapi import APIRouter, Response

from libs.common.clock import iso_millis
from libs.common.database import Connection, Database
from services.gateway.api_keys import queries
from services.gateway.api_keys.domain import KeyNotFound, NewKey, Rotation, digest, new_secret
from services.gateway.domain import Identity
from services.gateway.sessions import CurrentIdentity, require_live_session


class ApiKeyRoutes:
    def __init__(self, *, database: Database) -> None:
        self._database = database

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/api-keys", tags=["api-keys"])
        router.add_api_route("", self.list_keys, methods=["GET"])
        router.add_api_route("", self.create, methods=["POST"], status_code=201)
        router.add_api_route("/{key_id}/rotate", self.rotate, methods=["POST"], status_code=201)
        router.add_api_route("/{key_id}", self.revoke, methods=["DELETE"], status_code=204)
        return router

    async def list_keys(self, identity: CurrentIdentity) -> dict[str, Any]:
        async with self._database.transaction() as conn:
            items = [_shown(row) for row in await queries.list_keys(conn, identity.user_id)]
        return {"items": items, "next_cursor": None}

    async def create(self, body: NewKey, identity: CurrentIdentity) -> dict[str, Any]:
        """The only answer that ever shows the key."""
        await require_live_session(self._database, identity)
        async with self._database.transaction() as conn:
            return await self._make(conn, identity, body.name, body.scopes, body.expires_in_s)

    async def rotate(self, key_id: UUID, identity: CurrentIdentity, body: Rotation | None = None) -> dict[str, Any]:
        """A new key in place of an old one, which goes on working for the overlap."""
        await require_live_session(self._database, identity)
        overlap_s = (body or Rotation()).overlap_s
        async with self._database.transaction() as conn:
            old = await queries.find_key(conn, user_id=identity.user_id, key_id=key_id)
            if old is None:
                raise KeyNotFound("There is no such API key.")
            await queries.end_key(conn, user_id=identity.user_id, key_id=key_id, in_s=overlap_s)
            return await self._make(conn, identity, old["name"], old["scopes"], None)

    async def revoke(self, key_id: UUID, identity: CurrentIdentity) -> Response:
        """It ends everywhere within 5 s."""
        async with self._database.transaction() as conn:
            if not await queries.delete_key(conn, user_id=identity.user_id, key_id=key_id):
                raise KeyNotFound("There is no such API key.")
        return Response(status_code=204)

    async def _make(
        self, conn: Connection, identity: Identity, name: str, scopes: list[str], expires_in_s: int | None
    ) -> dict[str, Any]:
        secret = new_secret()
        key_id = await queries.insert_key(
            conn,
            user_id=identity.user_id,
            name=name,
            scopes=scopes,
            key_hash=digest(secret),
            hint=secret[:7],
            expires_in_s=expires_in_s,
        )
        row = await queries.find_key(conn, user_id=identity.user_id, key_id=key_id)
        return {**_shown(row or {}), "key": secret}


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    times = {"created_at", "expires_at", "last_used_at"}
    return {name: iso_millis(value) if name in times and value is not None else value for name, value in row.items()}
