"""Refusals counted in memory and written now and then: a flood of refused requests must not become one of writes."""

import asyncio
from collections import Counter
from typing import Final

from libs.common.database import Database, DatabaseUnavailable
from services.gateway.limited import queries
from services.gateway.limited.domain import Refusals

WRITE_EVERY_S: Final = 2.0
MAX_SUBJECTS: Final = 2_000
"""Beyond so many at once the rest is counted together: who sends from ten thousand addresses is one event."""
OTHERS: Final = "others"


class LimitedRequests:
    def __init__(self, database: Database) -> None:
        self._database = database
        self._counts: Counter[tuple[str, str, str]] = Counter()

    def note(self, *, subject: str, limit_name: str, route_group: str) -> None:
        key = (subject, limit_name, route_group)
        if key not in self._counts and len(self._counts) >= MAX_SUBJECTS:
            key = (OTHERS, limit_name, route_group)
        self._counts[key] += 1

    async def run(self) -> None:
        while True:
            await asyncio.sleep(WRITE_EVERY_S)
            await self.write()

    async def write(self) -> None:
        """Write what was counted; while the database is away, go on counting."""
        if not self._counts:
            return
        counted, self._counts = self._counts, Counter()
        rows = [
            Refusals(subject=subject, limit_name=limit_name, route_group=route_group, requests=requests)
            for (subject, limit_name, route_group), requests in counted.items()
        ]
        try:
            async with self._database.transaction() as conn:
                await queries.add_refusals(conn, rows)
        except DatabaseUnavailable:
            self._counts.update(counted)
