"""The faults of a soak: one after another by a schedule that its seed repeats, and how soon each was over.

Replica 1 of every service is killed and stopped, replica 2 never: it lives through everything else from beginning to
end, and is the witness for what its process holds on to. Both lose their connections, time and packets.
"""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import httpx

from ops.failure import Failure
from ops.stack.stack import Stack
from tests.faults.firewall import dropped_packets, may_drop_packets
from tests.faults.process_faults import processes_below, title_of
from tests.faults.rabbitmqctl import rabbitmqctl
from tests.faults.soak.door import Stopped
from tests.faults.soak.ports import Ports

SERVICES: Final = ("gateway", "billing", "metering", "agents")
WITNESS: Final = 2
EVERY_S: Final = 20.0
WARMING_CUTS: Final = 20
_RACE: Final = (Failure, ProcessLookupError, FileNotFoundError, asyncpg.PostgresError, OSError)
"""What the victim of one fault may do to the next: it is not there, or not yet."""

Work = Callable[["Disturber"], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Happened:
    at_s: float
    fault: str
    recovered_s: float | None
    """From the heal until every process was ready again; None if the next fault came first."""


@dataclass(slots=True, kw_only=True)
class Disturber:
    stack: Stack
    ports: Ports
    superuser_url: str
    chance: random.Random
    stopped: Stopped
    client: httpx.AsyncClient
    happened: list[Happened] = field(default_factory=list[Happened])

    async def warm_up(self) -> None:
        """Cut everybody off from everything, again and again, before anything is measured.

        What a process holds grows with the first twenty or so times that all its connections break, by 2 to 4 MB of
        places in memory that are used again from then on: after sixty more times it was the same.
        """
        for _ in range(WARMING_CUTS):
            with suppress(*_RACE, RuntimeError):
                await connections_cut(self)
                await rabbitmqctl(self.stack, "close_all_connections", "warming up")
            await asyncio.sleep(1)

    async def disturb(self, *, for_s: float, say: Callable[[str], None]) -> None:
        """A fault every `EVERY_S`, the last one early enough to be over by the end."""
        names, began = list(FAULTS if may_drop_packets() else WITHOUT_FIREWALL), time.monotonic()
        at_s = EVERY_S
        while at_s <= for_s - EVERY_S:
            await asyncio.sleep(max(began + at_s - time.monotonic(), 0))
            name = self.chance.choice(names)
            say(f"{at_s:6.0f} s  {name}")
            with suppress(*_RACE):
                await FAULTS[name](self)
            next_at = began + at_s + EVERY_S
            recovered_s = await self._recovers(until=next_at)
            self.happened.append(Happened(at_s=at_s, fault=name, recovered_s=recovered_s))
            at_s += EVERY_S

    async def _recovers(self, *, until: float) -> float | None:
        healed = time.monotonic()
        while time.monotonic() < until:
            if await self.all_ready():
                return time.monotonic() - healed
            await asyncio.sleep(0.2)
        return None

    async def all_ready(self) -> bool:
        answers = await asyncio.gather(*(self._is_ready(url) for url in self.ports.service_urls()))
        return all(answers)

    async def _is_ready(self, url: str) -> bool:
        try:
            return (await self.client.get(f"{url}/health/ready", timeout=5)).status_code == 200
        except httpx.TransportError:
            return False


def killed(service: str) -> Work:
    async def work(field: Disturber) -> None:
        os.kill(field.stack.pid(service), signal.SIGKILL)

    return work


def asked_to_stop(service: str, how: signal.Signals = signal.SIGTERM) -> Work:
    async def work(field: Disturber) -> None:
        os.kill(field.stack.pid(service), how)

    return work


def frozen(service: str, number: int, for_s: float) -> Work:
    """Alive and silent, PostgreSQL with its whole family."""

    async def work(field: Disturber) -> None:
        family, began = processes_below(field.stack.pid(service, number)), time.monotonic()
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        if service == "gateway":
            field.stopped.spans.append((field.ports.url(service, number), began, began + for_s + 1))
        try:
            await asyncio.sleep(for_s)
        finally:
            for pid in reversed(family):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)

    return work


async def backend_killed(field: Disturber) -> None:
    """kill -9 of one connection's process: the server drops all of them and restarts itself."""
    backends = [pid for pid in processes_below(field.stack.pid("postgres")) if "venture_" in title_of(pid)]
    if backends:
        os.kill(field.chance.choice(backends), signal.SIGKILL)


async def connections_cut(field: Disturber) -> None:
    """Every connection to the database is reset."""
    connection = await asyncpg.connect(field.superuser_url, timeout=5)
    try:
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'venture_%'"
        )
    finally:
        await connection.close()


async def counters_locked(field: Disturber) -> None:
    connection = await asyncpg.connect(field.superuser_url, timeout=5)
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE usage_metrics IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(6)
    finally:
        await connection.close()


def packets_lost(engine: str, for_s: float) -> Work:
    async def work(field: Disturber) -> None:
        with dropped_packets(field.ports.of(engine)):
            await asyncio.sleep(for_s)

    return work


WITHOUT_FIREWALL: Final[Mapping[str, Work]] = {
    **{f"{name} killed": killed(name) for name in (*SERVICES, "postgres", "rabbitmq", "redis", "stripe")},
    **{f"{name} asked to stop": asked_to_stop(name) for name in (*SERVICES, "rabbitmq", "redis")},
    "postgres restarted": asked_to_stop("postgres", signal.SIGINT),
    "a database connection's process killed": backend_killed,
    "all database connections cut": connections_cut,
    "metering's counters locked for 6 s": counters_locked,
    "gateway-2 frozen for 4 s": frozen("gateway", WITNESS, 4),
    "billing-2 frozen for 10 s": frozen("billing", WITNESS, 10),
    "billing-1 frozen for 8 s": frozen("billing", 1, 8),
    "metering-2 frozen for 10 s": frozen("metering", WITNESS, 10),
    "metering-1 frozen for 8 s": frozen("metering", 1, 8),
    "agents-1 frozen past its leases": frozen("agents", 1, 17),
    "agents-2 frozen past its leases": frozen("agents", WITNESS, 17),
    "postgres frozen for 8 s": frozen("postgres", 1, 8),
    "rabbitmq frozen for 12 s": frozen("rabbitmq", 1, 12),
    "redis frozen for 8 s": frozen("redis", 1, 8),
    "stripe frozen for 10 s": frozen("stripe", 1, 10),
}
FAULTS: Final[Mapping[str, Work]] = {
    **WITHOUT_FIREWALL,
    "packets to postgres lost for 8 s": packets_lost("postgres", 8),
    "packets to rabbitmq lost for 12 s": packets_lost("rabbitmq", 12),
    "packets to redis lost for 8 s": packets_lost("redis", 8),
}


def recoveries(happened: list[Happened]) -> dict[str, Any]:
    known = sorted(it.recovered_s for it in happened if it.recovered_s is not None)
    return {
        "faults": len(happened),
        "recovered_p50_s": round(known[len(known) // 2], 1) if known else None,
        "recovered_max_s": round(known[-1], 1) if known else None,
        "next_fault_came_first": [it.fault for it in happened if it.recovered_s is None],
    }
