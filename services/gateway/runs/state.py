"""Acceptances that arrive while a commit is under way share the next one: the disk is waited for once for all."""

from collections.abc import Sequence
from typing import Final

from libs.common.database import Database
from libs.common.together import HELP_AFTER_S, Together
from services.gateway.accounts import queries as accounts
from services.gateway.runs import operations
from services.gateway.runs.domain import Acceptance

LANES: Final = 4


class Acceptances:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._together = Together(self._accept, lanes=LANES, help_after_s=HELP_AFTER_S, name=lambda run: run.run_id)

    async def accept(self, run: Acceptance) -> bytes:
        """The answer's bytes, once the acceptance is committed."""
        return await self._together.ask(run)

    async def _accept(self, runs: Sequence[Acceptance]) -> list[bytes]:
        async with self._database.statement() as conn:
            profiles = await accounts.find_profiles(conn, [run.user_id for run in runs])
        async with self._database.statement() as conn:
            return await operations.accept_runs(conn, runs, profiles)
