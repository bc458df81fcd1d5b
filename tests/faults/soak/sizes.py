"""What each process holds on to: resident memory, file descriptors, connections; and whether that grows.

A process that is killed now and then says nothing about growth: each new one is small. So replica 2 of every service is
left alive, and is judged by itself: its warm first part, which is a sixth of the soak after another sixth (in which
every connection was cut some twenty times, `Disturber.warm_up`), against the last sixth. Of the others the table shows
the largest they ever were, so that a process that bursts within its short life is seen, too. Engines are shown and not
judged: their caches fill with the data of the soak.

Connections to the database come and go with the work, between the least and the most that a pool may have: what is
judged of them is that most, seen twice running. For a moment there may be as many again: to cancel a statement that
waited too long, the driver asks the server over a connection of its own. Of descriptors what is judged is the rest,
without connections to engines.
"""

import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from ops.failure import Failure
from ops.stack.stack import Stack
from tests.faults.process_faults import processes_below
from tests.faults.soak.disturbances import SERVICES, WITNESS
from tests.faults.soak.ports import Ports

ENGINES: Final = ("postgres", "rabbitmq", "redis")
STAND_INS: Final = ("stripe", "mailbox")
MOST_GROWTH: Final = 0.05
MOST_MORE_OPEN: Final = 3
"""One descriptor or connection more or less is a request under way at the moment of the sample."""
POOL_MOST: Final = 16
"""Connections of a process to the database: what `database.connect` opens at most."""
JUDGED_FROM_S: Final = 1_200.0
"""Before that an interpreter is still warming up: its growth is told, not judged."""
_PART: Final = 6
_ESTABLISHED: Final = "01"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    at_s: float
    pid: int
    rss_mb: float
    descriptors: int
    connections: Mapping[str, int]

    @property
    def others(self) -> int:
        """Descriptors that are no connections to engines."""
        return self.descriptors - sum(self.connections.values())


@dataclass(slots=True)
class Sizes:
    stack: Stack
    ports: Ports
    began: float = field(default_factory=time.monotonic)
    samples: dict[str, list[Sample]] = field(default_factory=dict[str, list[Sample]])

    def take(self) -> None:
        """One sample of every process that is there."""
        engine_of = {f"{self.ports.of(engine):04X}": engine for engine in ENGINES}
        sockets = _sockets(engine_of)
        names = [(name, number) for name in SERVICES for number in (1, WITNESS)]
        for name, number in [*names, *((name, 1) for name in (*ENGINES, *STAND_INS))]:
            with suppress(Failure, OSError, ProcessLookupError):
                sample = self._of(self.stack.pid(name, number), sockets)
                self.samples.setdefault(f"{name}-{number}", []).append(sample)

    def _of(self, pid: int, sockets: Mapping[str, str]) -> Sample:
        links: list[str] = []
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                links.append(str(entry.readlink()))
        engines = [sockets[link] for link in links if link in sockets]
        return Sample(
            at_s=time.monotonic() - self.began,
            pid=pid,
            rss_mb=sum(_own_mb(one) for one in processes_below(pid)),
            descriptors=len(links),
            connections={engine: engines.count(engine) for engine in ENGINES},
        )

    def growth(self) -> dict[str, dict[str, Any]]:
        """Of each process: before and after, and what was the most."""
        return {name: _compared(samples, time.monotonic() - self.began) for name, samples in self.samples.items()}

    def complaints(self, growth: Mapping[str, Mapping[str, Any]], *, soak_s: float) -> list[str]:
        """What grew that must not; only of witnesses, and only where the soak was long enough to tell."""
        if soak_s < JUDGED_FROM_S:
            return []
        found: list[str] = []
        for name in (f"{service}-{WITNESS}" for service in SERVICES):
            one = growth[name]
            if one["lives"] != 1:
                found.append(f"{name} died {one['lives'] - 1} times by itself")
            if one["rss_growth"] > MOST_GROWTH:
                found.append(f"{name} grew from {one['rss_mb'][0]} to {one['rss_mb'][1]} MB")
            found += [
                f"{name} has {one[what][1]:g} {what} after {one[what][0]:g}"
                for what in ("other_descriptors", "rabbitmq", "redis")
                if one[what][1] > one[what][0] + MOST_MORE_OPEN
            ]
            if one["postgres_most"] > POOL_MOST:
                found.append(f"{name} had {one['postgres_most']} connections to the database")
        return found


def _compared(samples: Sequence[Sample], so_far_s: float) -> dict[str, Any]:
    part = so_far_s / _PART
    warm = [it for it in samples if part <= it.at_s < 2 * part] or list(samples[:1])
    last = [it for it in samples if it.at_s >= so_far_s - part] or list(samples[-1:])
    before, after = (statistics.median(it.rss_mb for it in span) for span in (warm, last))

    def both(values: list[list[int]]) -> list[float]:
        return [statistics.median(it) for it in values]

    return {
        "lives": len({it.pid for it in samples}),
        "rss_mb": [round(before, 1), round(after, 1)],
        "rss_most_mb": round(max(it.rss_mb for it in samples), 1),
        "rss_growth": round(after / before - 1, 4),
        "postgres_most": max(
            (min(one.connections["postgres"], later.connections["postgres"]) for one, later in pairwise(samples)),
            default=0,
        ),
        "other_descriptors": both([[it.others for it in span] for span in (warm, last)]),
        "descriptors": both([[it.descriptors for it in span] for span in (warm, last)]),
        **{name: both([[it.connections[name] for it in span] for span in (warm, last)]) for name in ENGINES},
    }


def _own_mb(pid: int) -> float:
    """Resident, and of nobody else's: PostgreSQL's processes would each count the buffers they share."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]
    )
    return int(fields["Pss"].split()[0]) / 1024


def _sockets(engine_of: Mapping[str, str]) -> dict[str, str]:
    """The engine that each established connection leads to, by its socket as `/proc/PID/fd` names it."""
    found: dict[str, str] = {}
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        port = fields[2].rpartition(":")[2]
        if fields[3] == _ESTABLISHED and port in engine_of:
            found[f"socket:[{fields[9]}]"] = engine_of[port]
    return found
