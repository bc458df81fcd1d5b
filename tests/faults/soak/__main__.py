"""`python -m tests.faults.soak [--minutes 60] [--seed N]`: an hour of light load on a stack of its own, under faults.

Ends early, and with status 1, when a promise breaks. The seed repeats the schedule of faults; what meets them is as
random as time is.
"""

import argparse
import asyncio
import secrets
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx

from ops.stack.stack import Stack
from ops.stack.temporary import temporary_stack
from tests.faults.soak import report
from tests.faults.soak.books import BrokenPromise
from tests.faults.soak.disturbances import Disturber, recoveries
from tests.faults.soak.load import SETTINGS, Load, open_load
from tests.faults.soak.ports import Ports
from tests.faults.soak.report import say
from tests.faults.soak.sizes import JUDGED_FROM_S, Sizes
from tests.faults.verdict import chance_of

VISITORS: Final = 3
SCALE: Final = "gateway=2 billing=2 metering=2 agents=2"
SAMPLE_EVERY_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Soak:
    seed: int
    for_s: float
    began: float
    load: Load
    disturber: Disturber
    sizes: Sizes

    async def run(self) -> str:
        """Why it ended early, or nothing."""
        broken: list[str] = []
        try:
            async with asyncio.TaskGroup() as group:
                self.load.start(group)
                group.create_task(self._sample())
                group.create_task(self._tell())
                group.create_task(self._disturb())
            await self.load.promises.settle()
        except* BrokenPromise as raised:
            broken += [str(one) for one in raised.exceptions]
        return "; ".join(broken)

    async def _disturb(self) -> None:
        if self.for_s >= JUDGED_FROM_S:
            await self.disturber.warm_up()
        left_s = self.began + self.for_s - time.monotonic()
        await self.disturber.disturb(for_s=left_s, say=say)
        await asyncio.sleep(max(self.began + self.for_s - time.monotonic(), 0))
        self.load.over.set()

    async def _sample(self) -> None:
        while not self.load.over.is_set():
            await asyncio.to_thread(self.sizes.take)
            await asyncio.sleep(SAMPLE_EVERY_S)

    async def _tell(self) -> None:
        while not self.load.over.is_set():
            await asyncio.sleep(60)
            say(report.progress(self.began, self.load.books, self.disturber.happened, self.load.promises.snapshots))


async def soak(stack: Stack, *, seed: int, minutes: float) -> bool:
    async with open_load(stack, seed=seed, visitors=VISITORS) as load, httpx.AsyncClient(timeout=5) as client:
        ports = Ports(stack)
        disturber = Disturber(
            stack=stack,
            ports=ports,
            superuser_url=load.promises.superuser_url,
            chance=chance_of(seed),
            stopped=load.people.door.stopped,
            client=client,
        )
        one = Soak(
            seed=seed,
            for_s=minutes * 60,
            began=time.monotonic(),
            load=load,
            disturber=disturber,
            sizes=Sizes(stack=stack, ports=ports),
        )
        return await conclude(one, await one.run())


async def conclude(one: Soak, broken: str) -> bool:
    """Print the verdict and the summary, and keep them; True if everything held."""
    books, promises = one.load.books, one.load.promises
    soak_s, growth = time.monotonic() - one.began, one.sizes.growth()
    settled_s = None if promises.settled_s is None else round(promises.settled_s, 1)
    complaints = [broken] if broken else one.sizes.complaints(growth, soak_s=soak_s)
    if books.late:
        complaints.append(f"{len(books.late)} answers came later than promised, the first: {books.late[0]}")
    summary: dict[str, Any] = {
        "seed": one.seed,
        "soak_s": round(soak_s),
        "books": books.counts(),
        "snapshots": promises.snapshots,
        "settled_s": settled_s,
        "recovery": recoveries(one.disturber.happened),
        "sizes": growth,
    }
    if not broken:
        verdict, parked = await promises.verdict(one.seed), await promises.parked()
        if not verdict.is_clean:
            complaints.append(f"what was accepted and what happened differ: {promises.left}")
        if parked:
            complaints.append(f"{parked} messages are parked, and none was poisoned")
        summary["verdict"] = report.verdict_line(
            verdict,
            recovered=books.recovered,
            parked=parked,
            p99_s=books.p99_s,
            happened=one.disturber.happened,
        )
        say(summary["verdict"])
    say(report.table(growth))
    for name in ("books", "recovery"):
        say(f"{name}: {summary[name]}")
    say(f"{promises.snapshots} snapshots clean; settled {settled_s} s after the end")
    path = report.write(one.seed, {**summary, "complaints": complaints}, one.sizes, one.disturber.happened)
    for complaint in complaints:
        say(f"BROKEN: {complaint}")
    if complaints:
        _keep_logs(one.disturber.stack, path.with_suffix(".logs"))
    say(f"{'NOT KEPT' if complaints else 'KEPT'}; all figures are in {path}")
    return not complaints


def _keep_logs(stack: Stack, folder: Path) -> None:
    shutil.copytree(stack.home.logs, folder)
    say(f"what the processes said is in {folder}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    seed = given.seed or secrets.randbelow(1_000_000) + 1
    say(f"seed {seed}; repeat with --seed {seed}")
    with temporary_stack() as stack:
        stack.up(settings=SETTINGS, scale=SCALE)
        return 0 if asyncio.run(soak(stack, seed=seed, minutes=given.minutes)) else 1


if __name__ == "__main__":
    sys.exit(main())
