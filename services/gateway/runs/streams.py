"""A run's events from any number on: history from agents, live hints from Redis, never a gap, never a duplicate.

And its end for who waits for nothing else: that comes whole through Redis, and only where it was lost is agents asked.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
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

    async def events(self, identity: Identity, run_id: UUID, *, after: int) -> AsyncGenerator[RunEvent | None, None]:
        """Events in order without gaps, None whenever there was nothing new for a while."""
        async with self._feed.listen(f"run:{run_id}") as hints:
            with self._heads.watch(run_id, hints):
                async for event in self._follow(identity, run_id, hints, after=after):
                    yield event

    async def _follow(
        self, identity: Identity, run_id: UUID, hints: asyncio.Queue[bytes], *, after: int
    ) -> AsyncGenerator[RunEvent | None, None]:
        last, looked_at, is_behind = after, time.monotonic(), True
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

    async def end(self, run_id: UUID, *, wait_s: float) -> bytes | None:
        """The JSON of a run that was just accepted, once it has ended.

        None if it does not end within the time or before this process stops; empty if that it ended is all that came.
        """
        end: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def tell(run: bytes) -> None:
            if not end.done():
                end.set_result(run)

        def tell_of_head(hint: bytes) -> None:
            if orjson.loads(hint)["is_end"]:
                tell(b"")

        until = time.monotonic() + wait_s
        async with self._feed.ring(f"run-end:{run_id}", _Ear(tell)):
            with self._heads.watch(run_id, _Ear(tell_of_head)):
                while not end.done() and not self._stopping.is_set() and (left_s := until - time.monotonic()) > 0:
                    await asyncio.wait({end}, timeout=min(left_s, PAUSE_S))
        return end.result() if end.done() else None

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


class _Ear:
    """To those who hint a queue that is never full; what is put there is heard at once."""

    __slots__ = ("_hear",)

    def __init__(self, hear: Callable[[bytes], None]) -> None:
        self._hear = hear

    def full(self) -> bool:
        return False

    def get_nowait(self) -> bytes:
        return b""

    def put_nowait(self, item: bytes) -> None:
        self._hear(item)
