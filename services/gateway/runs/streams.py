"""A run's events from any number on: history from agents, live hints from Redis, never a gap, never a duplicate."""

import asyncio
import time
from collections.abc import AsyncGenerator
from typing import Any, Final
from uuid import UUID

import orjson
import structlog

from libs.common.database import Database
from libs.common.errors import Unavailable
from services.gateway import sse
from services.gateway.domain import Identity
from services.gateway.feed import LiveFeed
from services.gateway.runs import queries
from services.gateway.runs.domain import TERMINAL_EVENTS, RunNotFound
from services.gateway.upstreams import Upstream

log = structlog.get_logger(__name__)

PAGE: Final = 500
POLL_LIVE_S: Final = 1.0
"""How often the tables are asked although nothing was heard, while Redis works: the net below the hints."""
POLL_BLIND_S: Final = 0.25

RunEvent = dict[str, Any]


class RunStreams:
    def __init__(self, *, agents: Upstream, feed: LiveFeed, database: Database, stopping: asyncio.Event) -> None:
        self._agents = agents
        self._feed = feed
        self._database = database
        self._stopping = stopping

    async def require_run(self, identity: Identity, run_id: UUID) -> None:
        """Raises RunNotFound unless the run is the user's, started or only just accepted."""
        await self._page(identity, run_id, after=0, limit=1)

    async def frames(self, identity: Identity, run_id: UUID, *, after: int) -> AsyncGenerator[bytes, None]:
        """The stream as bytes, with heartbeats; ends with the terminal event, or early when this process stops."""
        quiet_since = time.monotonic()
        async for event in self.events(identity, run_id, after=after):
            if event is not None:
                quiet_since = time.monotonic()
                yield sse.frame(event=event["type"], data=event["data"], event_id=str(event["seq"]))
            elif time.monotonic() - quiet_since > sse.HEARTBEAT_S:
                quiet_since = time.monotonic()
                yield sse.HEARTBEAT

    async def events(self, identity: Identity, run_id: UUID, *, after: int) -> AsyncGenerator[RunEvent | None, None]:
        """Events in order without gaps, None whenever there was nothing new for a while."""
        async with self._feed.listen(f"run:{run_id}") as hints:
            last = after
            is_behind = True
            while not self._stopping.is_set():
                if is_behind:
                    async for event in self._catch_up(identity, run_id, after=last):
                        last = event["seq"]
                        yield event
                        if event["type"] in TERMINAL_EVENTS:
                            return
                event = await self._hint(hints)
                # No hint, or one from further ahead: look into the tables. One we have told already: nothing to do.
                is_behind = event is None or event["seq"] > last + 1
                if event is None:
                    yield None
                elif event["seq"] == last + 1:
                    last += 1
                    yield event
                    if event["type"] in TERMINAL_EVENTS:
                        return

    async def wait_until_terminal(self, identity: Identity, run_id: UUID, *, wait_s: float) -> bool:
        """Whether the run ended within the time."""
        try:
            async with asyncio.timeout(wait_s):
                async for event in self.events(identity, run_id, after=0):
                    if event is not None and event["type"] in TERMINAL_EVENTS:
                        return True
        except TimeoutError:
            return False
        return False

    async def _hint(self, hints: asyncio.Queue[bytes]) -> RunEvent | None:
        patience_s = POLL_LIVE_S if self._feed.is_up else POLL_BLIND_S
        try:
            async with asyncio.timeout(patience_s):
                return orjson.loads(await hints.get())
        except TimeoutError:
            return None

    async def _catch_up(self, identity: Identity, run_id: UUID, *, after: int) -> AsyncGenerator[RunEvent, None]:
        while True:
            try:
                items = await self._page(identity, run_id, after=after, limit=PAGE)
            except Unavailable as error:
                # A stream outlives a restart of agents: the client sees a pause, then goes on where it was.
                log.info("run_stream_waits", run_id=str(run_id), error=error.code)
                return
            for item in items:
                yield item
                after = item["seq"]
            if len(items) < PAGE:
                return

    async def _page(self, identity: Identity, run_id: UUID, *, after: int, limit: int) -> list[RunEvent]:
        response = await self._agents.call(
            "GET",
            f"/internal/runs/{run_id}/events",
            identity=identity,
            params=[("after", str(after)), ("limit", str(limit))],
        )
        if response.status_code == 404:  # noqa: PLR2004
            async with self._database.transaction() as conn:
                if await queries.find_accepted_run(conn, run_id=run_id, user_id=identity.user_id) is None:
                    raise RunNotFound("There is no such run.")
            return []
        if response.status_code != 200:  # noqa: PLR2004
            raise Unavailable("The run's events cannot be read right now.")
        return response.json()["items"]
