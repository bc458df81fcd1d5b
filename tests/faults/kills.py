"""Killing processes of a running stack, by a schedule that a seed repeats."""

import asyncio
import os
import random
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from ops.failure import Failure
from ops.stack.stack import Stack

VICTIMS = ("gateway", "billing", "metering", "agents", "postgres", "rabbitmq", "redis", "stripe")


@dataclass(slots=True)
class Killer:
    """Kills with SIGKILL and keeps a record; the supervisor brings back what was killed."""

    stack: Stack
    seed: int
    killed: list[str] = field(default_factory=list[str])

    def kill(self, victim: str) -> None:
        """Kill a process if it is there; one that is just being restarted is left alone."""
        with suppress(Failure, ProcessLookupError):
            os.kill(self.stack.pid(victim), signal.SIGKILL)
            self.killed.append(victim)

    async def kill_at_random(self, victims: Sequence[str], *, times: int, every_s: float) -> None:
        """Kill `times` processes, one every `every_s` on average; the seed decides which and when.

        A kill that finds nobody there, because the one before is still being mended, does not count.
        """
        chance = random.Random(self.seed)  # noqa: S311 - a schedule to repeat, not a secret
        enough = len(self.killed) + times
        while len(self.killed) < enough:
            await asyncio.sleep(chance.uniform(0.5, 1.5) * every_s)
            self.kill(chance.choice(victims))
