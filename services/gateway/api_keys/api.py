"""HTTP of a user's API keys."""

from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Request, Response

from libs.common.clock import iso_millis
from libs.common.database import Connection, Database
from services.gateway.api_keys import queries
from services.gateway.api_keys.domain import KeyNotFound, NewKey, Rotation, digest, new_secret
from services.gateway.domain import Identity
from services.gateway.idempotency.state import Answers, Made
from services.gateway.sessions import CurrentIdentity, LiveIdentity


class ApiKeyRoutes:
    def __init__(self, *, database: Database, answers: Answers) -> None:
        self._database = database
        self._answers = answers

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/api-keys", tags=["api-keys"])
        router.add_api_route("", self.list_keys, methods=["GET"])
        router.add_api_route("", self.create, methods=["POST"], status_code=201, response_model=None)
        router.add_api_route("/{key_id}/rotate", self.rotate, methods=["POST"], status_code=201, response_model=None)
        router.add_api_route("/{key_id}", self.revoke, methods=["DELETE"], status_code=204)
        return router

    async def list_keys(self, identity: CurrentIdentity) -> dict[str, Any]:
        async with self._database.transaction() as conn:
            items = [_shown(row) for row in await queries.list_keys(conn, identity.user_id)]
        return {"items": items, "next_cursor": None}

    async def create(self, body: NewKey, request: Request, identity: LiveIdentity) -> Response:
        """The only answer that ever shows the key."""

        async def work(key_id: UUID) -> Made:
            async with self._database.transaction() as conn:
                made = await self._make(conn, identity, key_id, body)
            return Made(response=_created(made))

        return await self._answers.give(request, identity, work)

    async def rotate(
        self, key_id: UUID, request: Request, identity: LiveIdentity, body: Rotation | None = None
    ) -> Response:
        """A new key, to live as long as the old one did, which itself goes on working for the overlap."""
        overlap_s = (body or Rotation()).overlap_s

        async def work(new_key_id: UUID) -> Made:
            async with self._database.transaction() as conn:
                old = await queries.find_key(conn, user_id=identity.user_id, key_id=key_id)
                if old is None:
                    raise KeyNotFound("There is no such API key.")
                successor = NewKey(name=old["name"], scopes=old["scopes"], expires_in_s=old["lifetime_s"])
                await queries.end_key(conn, user_id=identity.user_id, key_id=key_id, in_s=overlap_s)
                made = await self._make(conn, identity, new_key_id, successor)
            return Made(response=_created(made))

        return await self._answers.give(request, identity, work)

    async def revoke(self, key_id: UUID, identity: CurrentIdentity) -> Response:
        """It ends everywhere within 5 s."""
        async with self._database.transaction() as conn:
            if not await queries.delete_key(conn, user_id=identity.user_id, key_id=key_id):
                raise KeyNotFound("There is no such API key.")
        return Response(status_code=204)

    async def _make(self, conn: Connection, identity: Identity, key_id: UUID, body: NewKey) -> dict[str, Any]:
        secret = new_secret()
        await queries.insert_key(
            conn,
            key_id=key_id,
            user_id=identity.user_id,
            body=body,
            key_hash=digest(secret),
            hint=secret[:7],
        )
        row = await queries.find_key(conn, user_id=identity.user_id, key_id=key_id)
        return {**_shown(row or {}), "key": secret}


def _created(made: dict[str, Any]) -> Response:
    return Response(orjson.dumps(made, default=str), 201, media_type="application/json")


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    times = {"created_at", "expires_at", "last_used_at"}
    return {
        name: iso_millis(value) if name in times and value is not None else value
        for name, value in row.items()
        if name != "lifetime_s"
    }
