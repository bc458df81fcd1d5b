"""Housekeeping: answers kept for idempotency end after a day, told events after a week."""

import asyncio
from typing import Final

from libs.common.database import Database, DatabaseUnavailable
from services.gateway.accounts import queries as accounts
from services.gateway.runs import queries as runs

INTERVAL_S: Final = 60


class Housekeeper:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self) -> None:
        while True:
            try:
                async with self._database.transaction() as conn:
                    await runs.delete_old_keys(conn)
                    await accounts.delete_old_user_events(conn)
            except DatabaseUnavailable:
                await self._database.wait_until_up()
                continue
            await asyncio.sleep(INTERVAL_S)
