"""What all services say of themselves right now, asked once for all who look within two seconds."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from libs.common.health import Check, run_checks
from services.gateway.console.domain import SERVICES, ServiceHealth, Status, dependencies_of, read_health
from services.gateway.house import Name
from services.gateway.queues.state import QueueDesk, QueuesView
from services.gateway.upstreams import Upstream, UpstreamUnavailable

FRESH_S: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthView:
    services: Sequence[ServiceHealth]

    @property
    def dependencies(self) -> Mapping[str, Status]:
        return dependencies_of(self.services)

    @property
    def statuses(self) -> Mapping[str, Status]:
        return {**{service.name: service.status for service in self.services}, **self.dependencies}


class Board:
    def __init__(self, *, upstreams: Mapping[Name, Upstream], own_checks: Sequence[Check], desk: QueueDesk) -> None:
        self._upstreams: Mapping[str, Upstream] = {**upstreams}
        self._own_checks = own_checks
        self._desk = desk
        self._lock = asyncio.Lock()
        self._health: tuple[float, HealthView] | None = None
        self._queues: tuple[float, QueuesView] | None = None

    async def health(self) -> HealthView:
        async with self._lock:
            if self._health is None or self._health[0] < time.monotonic():
                services = await asyncio.gather(*(self._ask_health(name) for name in SERVICES))
                self._health = time.monotonic() + FRESH_S, HealthView(services=services)
            return self._health[1]

    async def queues(self) -> QueuesView:
        async with self._lock:
            if self._queues is None or self._queues[0] < time.monotonic():
                self._queues = time.monotonic() + FRESH_S, await self._desk.states()
            return self._queues[1]

    def forget(self) -> None:
        """After an act its effect is wanted, not what was seen before."""
        self._health = self._queues = None

    async def _ask_health(self, name: str) -> ServiceHealth:
        if name not in self._upstreams:
            return read_health(name, {"checks": await run_checks(self._own_checks)})
        try:
            response = await self._upstreams[name].call("GET", "/health/ready")
        except UpstreamUnavailable:
            return ServiceHealth(name=name, status="away")
        return read_health(name, response.json())
