"""One look a second for all open user streams of this process: whose number has grown is told, nobody else asks."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Final
from uuid import UUID

from libs.common.database import Database, DatabaseUnavailable
from services.gateway.accounts import queries

LOOK_EVERY_S: Final = 1.0
"""The net below the hints from Redis: an event is told this late if its hint was lost."""


class HeadWatch:
    """Puts a hint into the queues of streams whose user has newer events. Five thousand streams cost one statement."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._watched: dict[UUID, set[asyncio.Queue[bytes]]] = {}
        self._seen: dict[UUID, int] = {}

    @contextmanager
    def watch(self, user_id: UUID, hints: asyncio.Queue[bytes], *, seen: int) -> Generator[None, None, None]:
        queues = self._watched.setdefault(user_id, set())
        queues.add(hints)
        # The stream that has seen least decides: one hint too many costs a look, one too few an event.
        self._seen[user_id] = min(self._seen.get(user_id, seen), seen)
        try:
            yield
        finally:
            queues.discard(hints)
            if not queues and self._watched.get(user_id) is queues:
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
        async with self._database.transaction() as conn:
            heads = await queries.list_heads(conn, list(self._watched))
        for user_id, last in heads.items():
            if last > self._seen.get(user_id, last):
                self._seen[user_id] = last
                for queue in self._watched.get(user_id, ()):
                    if not queue.full():
                        queue.put_nowait(b"1")
