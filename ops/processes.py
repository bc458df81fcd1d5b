"""Recognising and ending processes that an earlier command of ours started.

A pid alone names nobody: it may have been given to another process since. What was recorded at the start is the pid
together with the kernel's start time, and only a process that still matches both is ever signalled.
"""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from ops.home import Home


def started_at(pid: int) -> int | None:
    """Start time of a living process in kernel ticks; none when there is no such process, or only its zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else int(fields[19])


def find_process(home: Home, name: str) -> int | None:
    """The pid of the program called `name`, if what was started under that name still runs."""
    try:
        pid, born = (home.run / f"{name}.born").read_text().split()
    except (FileNotFoundError, ValueError):  # ValueError: the machine died while the file was being written
        return None
    return int(pid) if started_at(int(pid)) == int(born) else None


def find_all(home: Home) -> dict[str, int]:
    names = [path.stem for path in home.run.glob("*.born")]
    return {name: pid for name in names if (pid := find_process(home, name))}


def end_processes(pids: Iterable[int], *, patience_s: float) -> None:
    """Ask each to stop, and kill what is still there when patience runs out."""
    waiting = set(pids)
    for pid in waiting:
        signal_process(pid, signal.SIGTERM)
    if left := _wait_gone(waiting, patience_s):
        for pid in left:
            signal_process(pid, signal.SIGKILL)
        _wait_gone(left, 5)


def signal_process(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended by itself, which is what was wanted
        os.kill(pid, number)


def forget(home: Home, name: str) -> None:
    """Remove the records of a program that no longer runs."""
    for path in (home.run / f"{name}.born", home.run / f"{name}.applied", home.pids / name):
        path.unlink(missing_ok=True)


def _wait_gone(pids: set[int], patience_s: float) -> set[int]:
    deadline = time.monotonic() + patience_s
    left = {pid for pid in pids if started_at(pid) is not None}
    while left and time.monotonic() < deadline:
        time.sleep(0.05)
        left = {pid for pid in left if started_at(pid) is not None}
    return left
