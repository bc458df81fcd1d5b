"""How every comparison is made: contenders in turns on the same machine, medians with their spread, one report.

    results = await alternate([ours, peer], rounds=5)
    publish(Report(name="gateway", ...))

Absolute figures drift with the machine; contenders that take turns meet the same moments, so their ratio holds.
"""

import os
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

ROUNDS: Final = int(os.environ.get("BENCH_ROUNDS", "5"))
OURS: Final = "Venture Companion"

Figures = Mapping[str, float]
"""What one round came to, by the name of a column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    name: str
    measure: Callable[[], Awaitable[Figures]]
    warm_up: Callable[[], Awaitable[object]] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    median: float
    least: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Rounds by contender, in the order in which they were measured."""

    rounds: Mapping[str, Sequence[Figures]]
    loads: Sequence[float]
    took_s: float

    def spread(self, contender: str, column: str) -> Spread | None:
        values = [figures[column] for figures in self.rounds[contender] if column in figures]
        if not values:
            return None
        return Spread(median=statistics.median(values), least=min(values), most=max(values))

    def median(self, contender: str, column: str) -> float:
        spread = self.spread(contender, column)
        if spread is None:
            raise LookupError(f"{contender} has no figure named {column}")
        return spread.median

    def ratio(self, column: str, *, to: str, of: str = OURS) -> float:
        """The median over the rounds of each round's ratio: what a moment does to both cancels out."""
        pairs = zip(self.rounds[of], self.rounds[to], strict=True)
        return statistics.median(mine[column] / theirs[column] for mine, theirs in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One line of what is promised, and what was seen."""

    text: str
    seen: str
    is_met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """How a figure is told. `name` is its key in Figures."""

    name: str
    title: str
    digits: int = 0

    def tell(self, value: float) -> str:
        return f"{value:,.{self.digits}f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    name: str
    title: str
    how: str
    """What was done, in a sentence or two: the same work for everybody."""
    columns: Sequence[Column]
    results: Results
    targets: Sequence[Target]
    notes: Sequence[str] = field(default_factory=tuple[str, ...])


PER_S: Final = Column(name="per_s", title="a second")
LATENCIES: Final = (
    Column(name="p50_ms", title="p50 ms", digits=1),
    Column(name="p95_ms", title="p95 ms", digits=1),
    Column(name="p99_ms", title="p99 ms", digits=1),
)
CPU: Final = Column(name="cpu_s_per_1000", title="CPU s per 1,000", digits=3)
RSS: Final = Column(name="rss_mb", title="memory MB")


async def alternate(contenders: Sequence[Contender], *, rounds: int = ROUNDS) -> Results:
    """Warm everybody up, then let them take turns."""
    started = time.monotonic()
    for contender in contenders:
        if contender.warm_up is not None:
            await contender.warm_up()
    measured: dict[str, list[Figures]] = {contender.name: [] for contender in contenders}
    loads = [os.getloadavg()[0]]
    for number in range(rounds):
        for contender in contenders:
            figures = await contender.measure()
            measured[contender.name].append(figures)
            told = ", ".join(f"{name} {value:,.4g}" for name, value in figures.items())
            print(f"  round {number + 1}: {contender.name}: {told}", flush=True)
        loads.append(os.getloadavg()[0])
    return Results(rounds=measured, loads=loads, took_s=time.monotonic() - started)


def at_least(text: str, value: float, wanted: float, *, digits: int = 2, unit: str = "") -> Target:
    return Target(text=text, seen=f"{value:,.{digits}f}{unit}", is_met=value >= wanted)


def at_most(text: str, value: float, wanted: float, *, digits: int = 2, unit: str = "") -> Target:
    return Target(text=text, seen=f"{value:,.{digits}f}{unit}", is_met=value <= wanted)
