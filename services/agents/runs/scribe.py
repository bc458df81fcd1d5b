"""Writes the deltas of all runs of a process: those that come while one transaction is under way share the next.

A delta waits for nobody while there is little to write, and for one commit when there is much.
"""

import asyncio
from dataclasses import dataclass, field
from uuid import UUID

from libs.common.database import Database
from services.agents.runs import queries
from services.agents.runs.domain import Append


@dataclass(slots=True)
class Batch:
    """Grows until its turn comes. Each run has one append under way at most, so it stays small."""

    appends: list[Append] = field(default_factory=list[Append])


class Scribe:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._gathering: tuple[Batch, asyncio.Task[set[UUID]]] | None = None
        self._last: asyncio.Task[set[UUID]] | None = None

    async def append(self, append: Append) -> bool:
        """Return once the event is committed; False, with nothing written, if its lease has passed on.

        Raises DatabaseUnavailable; the same append may then be made again, whatever became of the first.
        """
        if self._gathering is None:
            batch = Batch()
            writing = asyncio.create_task(self._write(batch, after=self._last), name="scribe")
            self._gathering = batch, writing
            self._last = writing
        batch, writing = self._gathering
        batch.appends.append(append)
        # Shielded: a run that is cancelled here takes no other's delta with it.
        return append.run_id in await asyncio.shield(writing)

    async def _write(self, batch: Batch, *, after: "asyncio.Task[set[UUID]] | None") -> set[UUID]:
        if after is not None:
            await asyncio.wait({after})
        self._gathering = None  # what comes from now on shares the next
        async with self._database.statement() as conn:
            return {*await queries.append_events(conn, batch.appends)}
