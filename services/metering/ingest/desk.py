"""Batches that arrive while a commit is under way share the next one; each event gets its own verdict.

Batches of the same users would otherwise wait for one another's counters inside PostgreSQL, each with a connection in
its hand, until its time is over. Here they wait in line, and what they have in common is looked up and moved once.
"""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

from libs.common.database import Database
from libs.common.errors import Unavailable
from libs.common.plans import Plans
from libs.common.together import Together
from services.metering.ingest.domain import UsageEvent
from services.metering.ingest.operations import count_events

MAX_SHARED: Final = 4_000
"""Events that share a commit at most; one batch may be of a thousand."""
MAX_WAITING: Final = 20_000
"""Events in line at most: what a busy machine counts while a sender waits. Who comes then is asked to come again."""


class TooManyEvents(Unavailable):
    """More events are waiting than can be counted in good time."""

    code = "metering.too_many_events"


class IngestDesk:
    def __init__(self, database: Database, plans: Plans) -> None:
        self._database = database
        self._plans = plans
        self._together = Together(self._count, most=MAX_SHARED, weigh=len)

    async def count(self, events: Sequence[UsageEvent]) -> Sequence[str]:
        """Count a batch; return the verdict of each event. Raises what went wrong with the commit it was part of."""
        if not events:
            return []
        if self._together.waiting + len(events) > MAX_WAITING:
            raise TooManyEvents("Too many events at once; send them again.", retry_after_s=2)
        return await self._together.ask(events)

    async def _count(self, batches: Sequence[Sequence[UsageEvent]]) -> list[Sequence[str]]:
        async with self._database.transaction() as conn:
            verdicts = await count_events(conn, self._plans, [event for batch in batches for event in batch])
        ends = accumulate((len(batch) for batch in batches), initial=0)
        return [verdicts[start:end] for start, end in pairwise(ends)]
