"""Asks that arrive while a commit is under way share the next one; each gets its own verdict.

One commit for many is what keeps a crowd at one user's counter short: the row is locked once for all of them instead of
once for each, and the disk is waited for once.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from libs.common.database import Database
from libs.common.errors import VentureError
from libs.common.plans import Plans
from libs.common.together import HELP_AFTER_S, Together
from services.metering import operations
from services.metering.accounts.queries import find_accounts
from services.metering.domain import Ask, Hold
from services.metering.reservations.operations import reserve_at_once

LANES: Final = 2


class HoldDesk:
    def __init__(self, database: Database, plans: Plans) -> None:
        self._database = database
        self._plans = plans
        self._together = Together(
            self._reserve, lanes=LANES, help_after_s=HELP_AFTER_S, name=lambda ask: ask.hold_id.int
        )

    def reserve(self, ask: Ask) -> "asyncio.Future[Hold]":
        """Hold what is asked for; raises the ask's own verdict, or what went wrong with the commit it was part of."""
        return self._together.put(ask)

    async def reserve_many(self, asks: Sequence[Ask]) -> list[Hold | BaseException]:
        """The verdict of each, in their order."""
        answers = [self._together.put(ask) for ask in asks]
        await asyncio.wait(answers)
        return [answer.exception() or answer.result() for answer in answers]

    async def _reserve(self, asks: Sequence[Ask]) -> list[Hold | VentureError]:
        """Two statements that commit themselves, and a transaction only for those whom they could not decide about.

        Safe to repeat if that transaction fails: who holds already is answered by the id.
        """
        async with self._database.statement() as conn:
            known = await find_accounts(conn, self._plans, sorted({ask.user_id for ask in asks}))
        async with self._database.statement() as conn:
            verdicts = await reserve_at_once(conn, self._plans, asks, known)
        if len(verdicts) < len(asks):
            rest = [ask for ask in asks if ask.hold_id not in verdicts]
            async with self._database.transaction() as conn:
                decided = await operations.reserve_many(conn, self._plans, rest)
            verdicts |= dict(zip((ask.hold_id for ask in rest), decided, strict=True))
        return [verdicts[ask.hold_id] for ask in asks]
