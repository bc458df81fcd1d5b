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
from services.gateway.runs.heads import RunHeads
from services.gateway.upstreams import Upstream

log = structlog.get_logger(__name__)

PAGE: Final = 500
PAUSE_S: Final = 1.0
"""How often a stream looks up: is it time for a heartbeat, does this process end, is there still something to fetch."""
LOOK_ALONE_S: Final = 10.0
"""How often a stream asks agents itself although nobody told it anything: the net below hints and heads."""
QUEUED_SEQ: Final = 1
"""The number of `run.queued`, which tells nothing to who has just been told that the run is accepted."""

RunEvent = dict[str, Any]


class RunStreams:
    def __init__(
        self, *, agents: Upstream, feed: LiveFeed, heads: RunHeads, database: Database, stopping: asyncio.Event
    ) -> None:
        self._agents = agents
        self._heads = heads
        self._feed = feed
        self._database = database
        self._stopping = stopping

    async def is_told(self, identity: Identity, run_id: UUID, *, after: int) -> bool:
        """Whether event `after` was the run's last. Raises RunNotFound for a run that is not the user's."""
        items = await self._page(identity, run_id, after=max(after - 1, 0), limit=1)
        return any(item["seq"] == after and item["type"] in TERMINAL_EVENTS for item in items)

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

    async def events(
        self, identity: Identity, run_id: UUID, *, after: int, is_new: bool = False
    ) -> AsyncGenerator[RunEvent | None, None]:
        """Events in order without gaps, None whenever there was nothing new for a while.

        Of a run that `is_new` no event is looked for before the first hint: there is none yet.
        """
        async with self._feed.listen(f"run:{run_id}") as hints:
            with self._heads.watch(run_id, hints):
                async for event in self._follow(identity, run_id, hints, after=after, is_behind=not is_new):
                    yield event

    async def _follow(
        self, identity: Identity, run_id: UUID, hints: asyncio.Queue[bytes], *, after: int, is_behind: bool
    ) -> AsyncGenerator[RunEvent | None, None]:
        last, looked_at = after, time.monotonic()
        while not self._stopping.is_set():
            if is_behind or time.monotonic() - looked_at > LOOK_ALONE_S:
                looked_at = time.monotonic()
                try:
                    async for event in self._pages(identity, run_id, after=last):
                        last = event["seq"]
                        yield event
                        if event["type"] in TERMINAL_EVENTS:
                            return
                    is_behind = False
                except Unavailable as error:
                    # A stream outlives a restart of agents: the client sees a pause, then goes on where it was.
                    log.info("run_stream_waits", run_id=str(run_id), error=error.code)
                    is_behind = True
            hint = await self._hint(hints)
            if hint is None:
                yield None
            elif hint.get("seq") == last + 1:
                last += 1
                yield hint
                if hint["type"] in TERMINAL_EVENTS:
                    return
            elif hint.get("head", hint.get("seq", 0)) > last:  # events we have not seen: they are in the tables
                is_behind = True

    async def wait_until_terminal(self, identity: Identity, run_id: UUID, *, wait_s: float) -> bool:
        """Whether a run that was just accepted ends within the time."""
        try:
            async with asyncio.timeout(wait_s):
                async for event in self.events(identity, run_id, after=QUEUED_SEQ, is_new=True):
                    if event is not None and event["type"] in TERMINAL_EVENTS:
                        return True
        except TimeoutError:
            return False
        return False

    async def _hint(self, hints: asyncio.Queue[bytes]) -> RunEvent | None:
        try:
            async with asyncio.timeout(PAUSE_S):
                return orjson.loads(await hints.get())
        except TimeoutError:
            return None

    async def _pages(self, identity: Identity, run_id: UUID, *, after: int) -> AsyncGenerator[RunEvent, None]:
        while True:
            items = await self._page(identity, run_id, after=after, limit=PAGE)
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
