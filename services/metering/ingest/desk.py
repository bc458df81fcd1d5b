"""Batches that arrive while a commit is under way share the next one; each event gets its own verdict.

Batches of the same users would otherwise wait for one another's counters inside PostgreSQL, each with a connection in
its hand, until its time is over. Here they wait in line, and what they have in common is looked up and moved once.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple

import structlog

from libs.common.database import Database
from libs.common.errors import Unavailable
from libs.common.plans import Plans
from services.metering.ingest.domain import UsageEvent
from services.metering.ingest.operations import count_events

log = structlog.get_logger(__name__)

MAX_SHARED: Final = 4_000
"""Events that share a commit at most; one batch may be of a thousand."""
MAX_WAITING: Final = 20_000
"""Events in line at most: what a busy machine counts while a sender waits. Who comes then is asked to come again."""


class TooManyEvents(Unavailable):
    """More events are waiting than can be counted in good time."""

    code = "metering.too_many_events"


class _Batch(NamedTuple):
    events: Sequence[UsageEvent]
    answer: asyncio.Future[Sequence[str]]


class IngestDesk:
    def __init__(self, database: Database, plans: Plans) -> None:
        self._database = database
        self._plans = plans
        self._line: deque[_Batch] = deque()
        self._waiting = 0
        self._work: asyncio.Task[None] | None = None

    async def count(self, events: Sequence[UsageEvent]) -> Sequence[str]:
        """Count a batch; return the verdict of each event. Raises what went wrong with the commit it was part of."""
        if not events:
            return []
        if self._waiting + len(events) > MAX_WAITING:
            raise TooManyEvents("Too many events at once; send them again.", retry_after_s=2)
        batch = _Batch(events, asyncio.get_running_loop().create_future())
        self._line.append(batch)
        self._waiting += len(events)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._count_line())
        return await batch.answer

    async def _count_line(self) -> None:
        while self._line:
            shared = self._next()
            try:
                await self._count_shared(shared)
            except Exception as error:  # noqa: BLE001 - an edge: whoever sent is told, each for themself
                if len(shared) == 1 or isinstance(error, Unavailable):
                    _tell(shared, error)
                    continue
                log.warning("usage_batches_separated", batches=len(shared), error=type(error).__name__)
                await self._count_alone(shared)

    async def _count_alone(self, batches: Sequence[_Batch]) -> None:
        """One of them cannot be counted, and must not take the others with it."""
        for batch in batches:
            try:
                await self._count_shared([batch])
            except Exception as error:  # noqa: BLE001 - an edge, as above
                _tell([batch], error)

    async def _count_shared(self, batches: Sequence[_Batch]) -> None:
        async with self._database.transaction() as conn:
            verdicts = await count_events(conn, self._plans, [event for batch in batches for event in batch.events])
        start = 0
        for events, answer in batches:
            if not answer.done():  # or who sent it has gone; it is counted, and a duplicate when it comes again
                answer.set_result(verdicts[start : start + len(events)])
            start += len(events)

    def _next(self) -> list[_Batch]:
        shared: list[_Batch] = [self._line.popleft()]
        count = len(shared[0].events)
        while self._line and count + len(self._line[0].events) <= MAX_SHARED:
            shared.append(self._line.popleft())
            count += len(shared[-1].events)
        self._waiting -= count
        return shared


def _tell(batches: Sequence[_Batch], error: Exception) -> None:
    for _, answer in batches:
        if not answer.done():
            answer.set_exception(error)
