"""HTTP of profile, account and the user's own event stream."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Header, Query
from fastapi.responses import JSONResponse, Response

from libs.common.clock import iso_millis
from libs.common.database import Database, DatabaseUnavailable
from libs.common.errors import Invalid
from services.gateway import sse
from services.gateway.accounts import operations, queries
from services.gateway.accounts.domain import (
    Deletion,
    ProfileChange,
    ProfileNotFound,
    require_confirmation,
    user_channel,
)
from services.gateway.accounts.state import HeadWatch
from services.gateway.domain import Identity
from services.gateway.feed import LiveFeed
from services.gateway.sessions import CurrentIdentity, LiveIdentity, StandingCache

PAUSE_S: Final = 1.0
PAGE: Final = 100
_CURSOR: Final = re.compile(r"\d{1,18}")


class AccountRoutes:
    def __init__(
        self,
        *,
        database: Database,
        standings: StandingCache,
        feed: LiveFeed,
        heads: HeadWatch,
        slots: sse.StreamSlots,
        stopping: asyncio.Event,
        delete_elsewhere: Callable[[UUID], Awaitable[None]] | None,
    ) -> None:
        self._database = database
        self._standings = standings
        self._feed = feed
        self._heads = heads
        self._slots = slots
        self._stopping = stopping
        self._delete_elsewhere = delete_elsewhere

    def router(self) -> APIRouter:
        router = APIRouter(tags=["account"])
        router.add_api_route("/v1/profile", self.read_profile, methods=["GET"])
        router.add_api_route("/v1/profile", self.change_profile, methods=["PATCH"])
        router.add_api_route("/v1/account", self.delete_account, methods=["DELETE"], response_model=None)
        router.add_api_route("/v1/events", self.events, methods=["GET"], response_model=None)
        return router

    async def read_profile(self, identity: CurrentIdentity) -> dict[str, Any]:
        async with self._database.transaction_as(identity.user_claims) as conn:
            profile = await queries.find_profile(conn, identity.user_id)
        if profile is None:
            raise ProfileNotFound("There is no profile for this account.")
        return {"email": identity.email, **profile}

    async def change_profile(self, body: ProfileChange, identity: CurrentIdentity) -> dict[str, Any]:
        async with self._database.transaction_as(identity.user_claims) as conn:
            profile = await operations.change_profile(conn, user_id=identity.user_id, change=body)
        return {"email": identity.email, **profile}

    async def delete_account(
        self,
        identity: LiveIdentity,
        body: Deletion | None = None,
        confirm: Annotated[str, Query(max_length=254)] = "",
    ) -> Response:
        """Delete the account here at once; the other services erase theirs as the event reaches them.

        Needs a word of confirmation, in the body or the query: `confirm` is the account's e-mail address, or true.
        """
        require_confirmation(body.confirm if body is not None else confirm, email=identity.email)
        if self._delete_elsewhere is not None:
            await self._delete_elsewhere(identity.user_id)
        async with self._database.transaction() as conn:
            await operations.delete_account(conn, identity.user_id)
        self._standings.forget(identity.user_id)
        answer = {"status": "deleted", "detail": "Your account is gone; what other services hold is being erased."}
        return JSONResponse(answer, 202)

    async def events(self, identity: CurrentIdentity, last_event_id: Annotated[str, Header()] = "") -> Response:
        """The user's own stream: thresholds, plan changes, runs. From `Last-Event-ID` on, else from now."""
        if last_event_id:
            if not _CURSOR.fullmatch(last_event_id):
                raise Invalid("Last-Event-ID must be the id of an event of this stream.")
            after = int(last_event_id)
        else:
            async with self._database.statement() as conn:
                after = await queries.latest_user_event(conn, identity.user_id)
        return self._slots.stream(identity.user_id, self._frames(identity, after))

    async def _frames(self, identity: Identity, after: int) -> AsyncGenerator[bytes, None]:
        bell = sse.Bell()
        async with self._feed.ring(user_channel(identity.user_id), bell):
            with self._heads.watch(identity.user_id, bell, seen=after):
                yield sse.HEARTBEAT
                quiet_since = time.monotonic()
                is_behind = True
                while not self._stopping.is_set():
                    rows = await self._new_events(identity, after) if is_behind else []
                    for row in rows or ():
                        after = row["seq"]
                        quiet_since = time.monotonic()
                        data = {**row["data"], "at": iso_millis(row["at"])}
                        yield sse.frame(event=row["type"], data=data, event_id=str(after))
                    if time.monotonic() - quiet_since > sse.HEARTBEAT_S:
                        quiet_since = time.monotonic()
                        yield sse.HEARTBEAT
                    if rows is None or len(rows) < PAGE:
                        is_behind = await bell.wait(PAUSE_S) or rows is None

    async def _new_events(self, identity: Identity, after: int) -> list[dict[str, Any]] | None:
        """None while the database is away: an open stream waits for it instead of breaking."""
        try:
            async with self._database.statement() as conn:
                return await queries.list_user_events(conn, user_id=identity.user_id, after=after, limit=PAGE)
        except DatabaseUnavailable:
            return None
