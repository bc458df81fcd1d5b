"""What a soak says: a line a minute, the verdict, a summary, and all of it as JSON in a file."""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import orjson

from libs.common.clock import system_clock
from ops.home import Home
from tests.faults.soak.books import Books
from tests.faults.soak.disturbances import Happened, recoveries
from tests.faults.soak.sizes import Sizes
from tests.faults.verdict import Verdict

COLUMNS: Final = "process        lives  resident MB (warm > end, most)   growth   descriptors   database  broker  redis"


def say(line: str) -> None:
    print(line, flush=True)


def progress(began: float, books: Books, happened: Sequence[Happened], snapshots: int) -> str:
    minutes = (time.monotonic() - began) / 60
    accepted = ", ".join(f"{len(names)} {kind}s" for kind, names in sorted(books.accepted.items()))
    return (
        f"{minutes:4.0f} min  {accepted}; {books.streams} streams read; {len(happened)} faults; "
        f"p99 {books.p99_s:.2f} s, {len(books.late)} late; {snapshots} snapshots; load {os.getloadavg()[0]:.1f}"
    )


def verdict_line(verdict: Verdict, *, recovered: int, parked: int, p99_s: float, happened: Sequence[Happened]) -> str:
    recovery = recoveries(list(happened))
    return (
        f"seed {verdict.seed} attempt {verdict.attempt} ack {verdict.ack} ambiguous {verdict.ambiguous} "
        f"ok {verdict.ack - verdict.lost} lost {verdict.lost} dup {verdict.dup + verdict.unexpected} "
        f"recovered {recovered} parked {parked} overshoot {verdict.overshoot} p99 {p99_s:.2f}s "
        f"t_recover {recovery['recovered_p50_s']}s (most {recovery['recovered_max_s']}s)"
    )


def table(growth: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [COLUMNS]
    for name, one in growth.items():
        spans = [f"{one[what][0]:g}>{one[what][1]:g}" for what in ("descriptors", "postgres", "rabbitmq", "redis")]
        rows.append(
            f"{name:<14} {one['lives']:>5}  {one['rss_mb'][0]:>9} > {one['rss_mb'][1]:<7} {one['rss_most_mb']:>8}"
            f"   {one['rss_growth']:>+9.1%}   {spans[0]:>11}   {spans[1]:>8}  {spans[2]:>6}  {spans[3]:>5}"
        )
    return "\n".join(rows)


def write(seed: int, report: Mapping[str, Any], sizes: Sizes, happened: Sequence[Happened]) -> Path:
    folder = Home.of().path / "soaks"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{system_clock():%Y-%m-%dT%H%M%S}-seed-{seed}.json"
    samples = {name: [asdict(sample) for sample in taken] for name, taken in sizes.samples.items()}
    everything = {**report, "faults": [asdict(one) for one in happened], "samples": samples}
    path.write_bytes(orjson.dumps(everything, option=orjson.OPT_INDENT_2))
    return path
