"""Housekeeping: abandoned claims of keys end within minutes, kept answers after a day, told events after a week."""

import asyncio
from typing import Final

from libs.common.database import Database, DatabaseUnavailable
from services.gateway.accounts import queries as accounts
from services.gateway.codes import queries as codes
from services.gateway.idempotency import queries as idempotency
from services.gateway.limited import queries as limited
from services.gateway.mail import queries as mail

INTERVAL_S: Final = 60


class Housekeeper:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def run(self) -> None:
        while True:
            try:
                async with self._database.transaction() as conn:
                    await idempotency.give_abandoned_keys_back(conn)
                    await idempotency.delete_old_keys(conn)
                    await accounts.delete_old_user_events(conn)
                    await codes.delete_ended(conn)
                    await mail.delete_hopeless(conn)
                    await limited.delete_old_refusals(conn)
            except DatabaseUnavailable:
                await self._database.wait_until_up()
                continue
            await asyncio.sleep(INTERVAL_S)
