"""One question to agents for all runs that are followed here: whose run has gone on is told, nobody else asks."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

import orjson

from libs.common.errors import Unavailable
from services.gateway.feed import Listener, LiveFeed
from services.gateway.upstreams import Upstream

LOOK_EVERY_S: Final = 1.0
"""The net below the hints from Redis: an event is told this late if its hint was lost."""
LOOK_BLIND_EVERY_S: Final = 0.25
"""While Redis is away there are no hints."""


class RunHeads:
    """Tells who follows a run of its newest event, as `{"head", "is_end"}`: one statement of agents for all runs."""

    def __init__(self, *, agents: Upstream, feed: LiveFeed) -> None:
        self._agents = agents
        self._feed = feed
        self._watched: dict[UUID, set[Listener]] = {}
        self._told: dict[UUID, int] = {}

    @contextmanager
    def watch(self, run_id: UUID, listener: Listener) -> Generator[None, None, None]:
        listeners = self._watched.setdefault(run_id, set())
        listeners.add(listener)
        self._told.pop(run_id, None)  # who comes later has been told nothing yet
        try:
            yield
        finally:
            listeners.discard(listener)
            if not listeners and self._watched.get(run_id) is listeners:
                del self._watched[run_id]
                self._told.pop(run_id, None)

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S if self._feed.is_up else LOOK_BLIND_EVERY_S)
            try:
                await self.look()
            except Unavailable:  # streams wait for agents instead of breaking
                continue

    async def look(self) -> None:
        if not self._watched:
            return
        asked = orjson.dumps({"run_ids": [str(run_id) for run_id in self._watched]})
        answer = await self._agents.call(
            "POST", "/internal/admin/runs/heads", content=asked, headers={"content-type": "application/json"}
        )
        if not answer.is_success:
            return
        said = answer.json()
        ended = {*said.get("ended", ())}  # which an older agents does not tell
        for name, seq in said["heads"].items():
            run_id = UUID(name)
            if run_id in self._watched and seq > self._told.get(run_id, 0):
                self._told[run_id] = seq
                self._tell(run_id, orjson.dumps({"head": seq, "is_end": name in ended}))

    def _tell(self, run_id: UUID, hint: bytes) -> None:
        for listener in self._watched[run_id]:
            if not listener.full():  # else what it has not read yet makes it look anyway
                listener.put_nowait(hint)
