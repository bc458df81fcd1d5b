"""Keeps billing's own records from growing for ever: old events, comparisons and reports go, in small bites."""

import asyncio
from typing import Final

from libs.common.database import Database, DatabaseUnavailable
from services.billing import operations, usage_operations

INTERVAL_S: Final = 3600.0
BITE: Final = 2_000


class Retention:
    """Deletes what is older than `keep_days`. Stripe delivers for three days; the rest is for people who look back."""

    def __init__(self, database: Database, *, keep_days: int) -> None:
        self._database = database
        self._keep_days = keep_days

    async def run(self) -> None:
        while True:
            try:
                deleted = await self.run_once()
            except DatabaseUnavailable:
                await self._database.wait_until_up()
                continue
            if deleted < BITE:
                await asyncio.sleep(INTERVAL_S)

    async def run_once(self) -> int:
        async with self._database.transaction() as conn:
            await usage_operations.forget_old_reports(conn, keep_days=self._keep_days)
            return await operations.forget_old_records(conn, keep_days=self._keep_days, limit=BITE)
