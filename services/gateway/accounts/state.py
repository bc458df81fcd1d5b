"""One look a second for all open user streams of this process: whose number has grown is told, nobody else asks."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from libs.common.database import Database, DatabaseUnavailable
from services.gateway.accounts import queries
from services.gateway.sse import Bell

LOOK_EVERY_S: Final = 1.0
"""The net below the hints from Redis: an event is told this late if its hint was lost."""


class HeadWatch:
    """Rings at the streams whose user has newer events. Five thousand streams cost one statement."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: dict[UUID, set[Bell]] = {}
        self._seen: dict[UUID, int] = {}

    @contextmanager
    def watch(self, user_id: UUID, bell: Bell, *, seen: int) -> Generator[None, None, None]:
        bells = self._watched.setdefault(user_id, set())
        bells.add(bell)
        # The stream that has seen least decides: one hint too many costs a look, one too few an event.
        self._seen[user_id] = min(self._seen.get(user_id, seen), seen)
        try:
            yield
        finally:
            bells.discard(bell)
            if not bells and self._watched.get(user_id) is bells:
                del self._watched[user_id], self._seen[user_id]

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                await self.look()
            except DatabaseUnavailable:  # streams wait for the database instead of breaking
                continue

    async def look(self) -> None:
        if not self._watched:
            return
        async with self._database.statement() as conn:
            heads = await queries.list_heads(conn, list(self._watched))
        for user_id, last in heads.items():
            if last > self._seen.get(user_id, last):
                self._seen[user_id] = last
                for bell in self._watched.get(user_id, ()):
                    bell.put_nowait(b"1")
