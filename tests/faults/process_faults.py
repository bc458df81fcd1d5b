"""Faults of whole processes of a running stack: killed, frozen, emptied or locked out, and healed again."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from ops.home import ROOT
from ops.stack.stack import Stack
from ops.stack.supervisor import Supervisor
from tests.faults.disks import GROWING_TABLES, fill, off_disk, on_disk, small_disk
from tests.faults.firewall import dropped_packets, may_drop_packets
from tests.faults.kills import Killer
from tests.faults.next_release import NEXT_RELEASE, NEXT_RELEASE_TAKEN_BACK, migrate_patiently
from tests.faults.rabbitmqctl import rabbitmqctl
from tests.faults.soak.ports import Ports


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """Where a fault is worked: the stack, who kills, and the database as its superuser."""

    stack: Stack
    killer: Killer
    environment: Mapping[str, str]
    superuser_url: str


def processes_below(pid: int) -> list[int]:
    """The process and all its children: PostgreSQL is a family."""
    children = [int(task) for task in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
    return [pid, *(below for child in children for below in processes_below(child))]


def title_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace")


async def frozen(field: Field, victim: str, *, for_s: float) -> None:
    """Alive and silent: connections stay open, nobody answers."""
    family = processes_below(field.stack.pid(victim))
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(for_s)
    finally:
        for pid in reversed(family):
            os.kill(pid, signal.SIGCONT)


async def killed(field: Field, victim: str, *, times: int, every_s: float) -> None:
    await field.killer.kill_at_random([victim], times=times, every_s=every_s)


async def stopped(field: Field, victim: str, *, for_s: float) -> None:
    """Gone, and nobody starts it again until the time is over: connections are refused."""
    supervisor, name = Supervisor(field.stack.home), f"{victim}-1"
    await asyncio.to_thread(supervisor.stop, [name])
    try:
        await asyncio.sleep(for_s)
    finally:
        await asyncio.to_thread(supervisor.start, name)


async def backends_killed(field: Field, *, times: int) -> None:
    """kill -9 of one connection's process: the server drops all of them and restarts itself."""
    for _ in range(times):
        backends = [pid for pid in processes_below(field.stack.pid("postgres")) if "venture_" in title_of(pid)]
        if backends:
            os.kill(backends[0], signal.SIGKILL)
        await asyncio.sleep(1)


async def table_locked(field: Field, table: str, *, for_s: float) -> None:
    connection = await asyncpg.connect(field.superuser_url)
    try:
        async with connection.transaction():
            await connection.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
            await asyncio.sleep(for_s)
    finally:
        await connection.close()


async def asked_to_stop(field: Field, *, rounds: int) -> None:
    """A rolling restart: each service gets SIGTERM in turn, and the supervisor starts it again."""
    for _ in range(rounds):
        for victim in ("agents", "metering", "billing", "gateway"):
            os.kill(field.stack.pid(victim), signal.SIGTERM)
            await asyncio.sleep(2.5)


async def alarmed(field: Field, *, raised: Sequence[str], cleared: Sequence[str], for_s: float) -> None:
    """The broker takes nothing from those who publish, and goes on giving to those who consume."""
    await rabbitmqctl(field.stack, *raised)
    try:
        await asyncio.sleep(for_s)
    finally:
        await rabbitmqctl(field.stack, *cleared)


async def disk_full(field: Field, *, for_s: float) -> None:
    """The tables that grow with every run lie on a disk of their own, on which there is no room left."""
    with small_disk(field.stack) as disk:
        await on_disk(field.superuser_url, GROWING_TABLES, disk)
        try:
            await asyncio.sleep(2)
            filler = disk / "filler"
            fill(filler)
            await asyncio.sleep(for_s)
            filler.unlink()
        finally:
            await off_disk(field.superuser_url, GROWING_TABLES)


async def closed_and_opened(field: Field, *, rounds: int) -> None:
    """Maintenance as an operator switches it, and meanwhile a killed Redis."""
    for _ in range(rounds):
        await venture(field, "maintenance", "on", "--minutes", "5", "--reason", "a test", "--yes")
        field.killer.kill("redis")
        await asyncio.sleep(3)
        await venture(field, "maintenance", "off", "--yes")
        await asyncio.sleep(3)


async def venture(field: Field, *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        ROOT / "scripts/venture", *arguments, env={**os.environ, "VENTURE_HOME": str(field.stack.home.path)}
    )
    if await process.wait() != 0:
        raise RuntimeError(f"venture {' '.join(arguments)} ended with {process.returncode}")


async def packets_dropped(field: Field, engine: str, *, for_s: float) -> None:
    if not may_drop_packets():
        pytest.skip("dropping packets needs root and iptables")
    with dropped_packets(Ports(field.stack).of(engine)):
        await asyncio.sleep(for_s)


async def migrated_and_taken_back(field: Field) -> None:
    """What a release does to a database in use: a column, an index, events with fields that old consumers do not know.

    Each statement waits for its lock no longer than migrations do, and is tried again.
    """
    for statement in (*NEXT_RELEASE, *NEXT_RELEASE_TAKEN_BACK):
        await migrate_patiently(field.superuser_url, statement)
        await asyncio.sleep(1)


Fault = Callable[[Field], Awaitable[None]]

FAULTS: Final[Mapping[str, Fault]] = {
    "broker killed five times": lambda field: killed(field, "rabbitmq", times=5, every_s=6),
    "broker frozen for 20 s": lambda field: frozen(field, "rabbitmq", for_s=20),
    "ten database connections killed": lambda field: backends_killed(field, times=10),
    "database stopped for 30 s": lambda field: stopped(field, "postgres", for_s=30),
    "database frozen for 10 s": lambda field: frozen(field, "postgres", for_s=10),
    "metering's counters locked for 10 s": lambda field: table_locked(field, "usage_metrics", for_s=10),
    "redis killed three times, and what it knew with it": lambda field: killed(field, "redis", times=3, every_s=2),
    "redis frozen for 10 s": lambda field: frozen(field, "redis", for_s=10),
    "metering killed ten times": lambda field: killed(field, "metering", times=10, every_s=1.5),
    "agents killed ten times": lambda field: killed(field, "agents", times=10, every_s=1.5),
    "agents frozen past their lease": lambda field: frozen(field, "agents", for_s=40),
    "the broker's disk alarm for 15 s": lambda field: alarmed(
        field, raised=("set_disk_free_limit", "900GB"), cleared=("set_disk_free_limit", "1GB"), for_s=15
    ),
    "the broker's memory alarm for 15 s": lambda field: alarmed(
        field,
        raised=("set_vm_memory_high_watermark", "absolute", "1MB"),
        cleared=("set_vm_memory_high_watermark", "0.4"),
        for_s=15,
    ),
    "the database's disk full for 10 s": lambda field: disk_full(field, for_s=10),
    "packets to the database dropped for 8 s": lambda field: packets_dropped(field, "postgres", for_s=8),
    "packets to the broker dropped for 15 s": lambda field: packets_dropped(field, "rabbitmq", for_s=15),
    "packets to redis dropped for 8 s": lambda field: packets_dropped(field, "redis", for_s=8),
    "maintenance on and off three times, and redis killed in it": lambda field: closed_and_opened(field, rounds=3),
    "a release's migration and its rollback": migrated_and_taken_back,
    "rolling restart": lambda field: asked_to_stop(field, rounds=2),
}
