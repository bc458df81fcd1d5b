"""Faults of whole processes of a running stack: killed, frozen, emptied or locked out, and healed again."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg

from ops.stack.stack import Stack
from tests.faults.kills import Killer


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


Fault = Callable[[Field], Awaitable[None]]

FAULTS: Final[Mapping[str, Fault]] = {
    "broker killed five times": lambda field: killed(field, "rabbitmq", times=5, every_s=6),
    "broker frozen for 20 s": lambda field: frozen(field, "rabbitmq", for_s=20),
    "ten database connections killed": lambda field: backends_killed(field, times=10),
    "database frozen for 10 s": lambda field: frozen(field, "postgres", for_s=10),
    "metering's counters locked for 10 s": lambda field: table_locked(field, "usage_metrics", for_s=10),
    "redis killed three times, and what it knew with it": lambda field: killed(field, "redis", times=3, every_s=2),
    "redis frozen for 10 s": lambda field: frozen(field, "redis", for_s=10),
    "metering killed ten times": lambda field: killed(field, "metering", times=10, every_s=1.5),
    "agents killed ten times": lambda field: killed(field, "agents", times=10, every_s=1.5),
    "agents frozen past their lease": lambda field: frozen(field, "agents", for_s=40),
    "rolling restart": lambda field: asked_to_stop(field, rounds=2),
}
