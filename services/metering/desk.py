"""Asks that arrive while a commit is under way share the next one; each gets its own verdict.

One commit for many is what keeps a crowd at one user's counter short: the row is locked once for all of them instead of
once for each, and the disk is waited for once.
"""

import asyncio
from collections import deque
from typing import Final
from uuid import UUID

from libs.common.database import Database
from libs.common.errors import VentureError
from libs.common.plans import Plans
from services.metering import operations
from services.metering.domain import Ask, Hold

BATCH: Final = 128
LANES: Final = 2
"""How many commits are under way at once: one waits for the disk while the next is being decided."""


class HoldDesk:
    def __init__(self, database: Database, plans: Plans) -> None:
        self._database = database
        self._plans = plans
        self._waiting: deque[tuple[Ask, asyncio.Future[Hold]]] = deque()
        self._lanes: set[asyncio.Task[None]] = set()

    async def reserve(self, ask: Ask) -> Hold:
        """Hold what is asked for; raises the ask's own verdict, or what went wrong with the commit it was part of."""
        answer: asyncio.Future[Hold] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, answer))
        if len(self._lanes) < LANES:
            lane = asyncio.create_task(self._work())
            self._lanes.add(lane)
            lane.add_done_callback(self._lanes.discard)
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            batch = self._next_batch()
            try:
                async with self._database.transaction() as conn:
                    verdicts = await operations.reserve_many(conn, self._plans, [ask for ask, _ in batch])
            except Exception as error:  # noqa: BLE001 - an edge: whoever asked is told, each for themself
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for (_, answer), verdict in zip(batch, verdicts, strict=True):
                if answer.done():  # who asked has gone; the hold is swept
                    continue
                if isinstance(verdict, VentureError):
                    answer.set_exception(verdict)
                else:
                    answer.set_result(verdict)

    def _next_batch(self) -> list[tuple[Ask, asyncio.Future[Hold]]]:
        """The asks that waited longest; one that repeats an id of this batch waits for the next."""
        batch: list[tuple[Ask, asyncio.Future[Hold]]] = []
        repeated: list[tuple[Ask, asyncio.Future[Hold]]] = []
        ids: set[UUID] = set()
        while self._waiting and len(batch) < BATCH:
            ask, answer = self._waiting.popleft()
            if ask.hold_id in ids:
                repeated.append((ask, answer))
            else:
                ids.add(ask.hold_id)
                batch.append((ask, answer))
        self._waiting.extendleft(reversed(repeated))
        return batch
