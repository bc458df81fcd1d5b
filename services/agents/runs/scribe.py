"""Writes deltas and ends of all runs of a process: those that come while a commit is under way share the next.

A run waits for nobody while there is little to write, and for one commit when there is much.
"""

from collections.abc import Sequence

from libs.common.database import Database
from libs.common.together import Together
from services.agents.runs import operations, queries
from services.agents.runs.domain import Append, Finish, Run


class Scribe:
    """Both raise DatabaseUnavailable; the same may then be asked for again, whatever became of the first."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._appends = Together(self._append, name=lambda it: it.run_id)
        self._finishes = Together(self._finish, name=lambda it: it.run_id)

    async def append(self, append: Append) -> bool:
        """Return once the event is committed; False, with nothing written, if its lease has passed on."""
        return await self._appends.ask(append)

    async def finish(self, finish: Finish) -> Run | None:
        """Return the run once it has ended; None, with nothing written, if its lease has passed on or it had ended."""
        return await self._finishes.ask(finish)

    async def _append(self, appends: Sequence[Append]) -> list[bool]:
        async with self._database.statement() as conn:
            written = {*await queries.append_events(conn, appends)}
        return [append.run_id in written for append in appends]

    async def _finish(self, finishes: Sequence[Finish]) -> list[Run | None]:
        async with self._database.statement() as conn:
            finished = await operations.finish_runs(conn, finishes)
        return [finished.get(finish.run_id) for finish in finishes]
