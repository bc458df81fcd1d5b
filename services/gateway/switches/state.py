"""What is switched on right now, in memory: read from the table every second, kept while the database is away."""

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from libs.common.database import Database, DatabaseUnavailable
from services.gateway.switches import queries
from services.gateway.switches.domain import MAINTENANCE, SwitchView

POLL_INTERVAL_S: Final = 1.0


class Switches:
    def __init__(self, database: Database, *, maintenance_mode: bool) -> None:
        self._database = database
        self._from_environment = maintenance_mode
        self._views: Mapping[str, SwitchView] = {}
        self._read_at = 0.0

    async def run(self) -> None:
        while True:
            try:
                await self.refresh()
            except DatabaseUnavailable:  # the last known values stay in force
                await asyncio.sleep(POLL_INTERVAL_S)
                continue
            await asyncio.sleep(POLL_INTERVAL_S)

    async def refresh(self) -> None:
        async with self._database.statement() as conn:
            self._views = await queries.read_switches(conn)
        self._read_at = time.monotonic()

    def is_on(self, name: str) -> bool:
        view = self._views.get(name)
        if view is None or not view.is_on:
            return False
        return view.expires_in_s is None or time.monotonic() - self._read_at < view.expires_in_s

    def in_maintenance(self, route_group: str) -> bool:
        return self._from_environment or self.is_on(MAINTENANCE) or self.is_on(f"{MAINTENANCE}:{route_group}")
