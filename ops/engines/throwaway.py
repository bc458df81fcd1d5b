"""A home that belongs to one process, and removing those whose process was killed."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from ops.failure import Failure
from ops.home import Home, remove_outside
from ops.processes import end_processes, find_all

# While its owner lives, this file in a home is locked.
_OWNER = "owner.lock"


def kill_programs(home: Home) -> None:
    end_processes(find_all(home).values(), patience_s=0)


@contextmanager
def own_home(named: Path | None, *, parent: Path, end: Callable[[Home], object] = kill_programs) -> Generator[Home]:
    """A home, locked for as long as the block lasts, then ended by `end` and removed.

    So are, at the beginning, those whose owner was killed. Raises `Failure` if the named home is in use.
    """
    path = named or parent / f"{os.getpid()}-{secrets.token_hex(3)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Held while homes are looked through and made, so that none is taken for abandoned before it is locked.
    with (path.parent / ".owners.lock").open("w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        for abandoned in [path] if named else sorted(parent.iterdir()):
            _remove_if_abandoned(abandoned, end)
        if path.exists():
            raise Failure(f"{path} is in use by another run. Wait for its end, or choose another directory.")
        home = Home(path.resolve())
        home.create()
        lock = (home.path / _OWNER).open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        try:
            yield home
        finally:
            _remove(home, end)


def _remove_if_abandoned(path: Path, end: Callable[[Home], object]) -> None:
    if not (path / _OWNER).exists():
        return
    with (path / _OWNER).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        _remove(Home(path.resolve()), end)


def _remove(home: Home, end: Callable[[Home], object]) -> None:
    end(home)
    remove_outside(home)
    shutil.rmtree(home.path)
