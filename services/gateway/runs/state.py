"""Acceptances that arrive while a commit is under way share the next one: the disk is waited for once for all."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from libs.common.database import Database
from libs.common.together import HELP_AFTER_S, Together
from services.gateway.accounts import queries as accounts
from services.gateway.runs import operations
from services.gateway.runs.domain import Acceptance

LANES: Final = 4

Profile = Mapping[str, Any]


class Acceptances:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._profiles = Together(self._find_profiles, lanes=LANES, help_after_s=HELP_AFTER_S)
        self._accepted = Together(self._accept, lanes=LANES, help_after_s=HELP_AFTER_S, name=lambda ask: ask[0].run_id)

    def look_up(self, user_id: UUID) -> asyncio.Future[Profile]:
        """The profile that goes with a run, to be found while something else is done: nobody has to await it."""
        profile = self._profiles.put(user_id)
        profile.add_done_callback(lambda it: it.cancelled() or it.exception())
        return profile

    async def accept(self, run: Acceptance, profile: Profile) -> bytes:
        """The answer's bytes, once the acceptance is committed."""
        return await self._accepted.ask((run, profile))

    async def _find_profiles(self, user_ids: Sequence[UUID]) -> list[Profile]:
        async with self._database.statement() as conn:
            profiles = await accounts.find_profiles(conn, user_ids)
        return [profiles.get(user_id, {}) for user_id in user_ids]

    async def _accept(self, asks: Sequence[tuple[Acceptance, Profile]]) -> list[bytes]:
        async with self._database.statement() as conn:
            return await operations.accept_runs(conn, asks)
