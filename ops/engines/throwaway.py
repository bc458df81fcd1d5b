"""A home that belongs to one process, and removing those whose process was killed."""

import fcntl
import os
import secrets
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ops.failure import Failure
from ops.home import Home, remove_outside
from ops.processes import end_processes, find_all


@contextmanager
def own_home(named: Path | None, *, parent: Path) -> Generator[Home]:
    """A home, locked for as long as the block lasts and removed at its end. Raises `Failure` if it is in use."""
    path = named or parent / f"{os.getpid()}-{secrets.token_hex(3)}"
    path.parent.mkdir(parents=True, exist_ok=True)
    # Held while homes are looked through and made, so that none is taken for abandoned before it is locked.
    with (path.parent / ".engines.lock").open("w") as door:
        fcntl.flock(door, fcntl.LOCK_EX)
        for abandoned in [path] if named else sorted(parent.iterdir()):
            _remove_if_abandoned(abandoned)
        if path.exists():
            raise Failure(f"{path} is in use by another run. Wait for its end, or choose another directory.")
        home = Home(path.resolve())
        home.create()
        lock = (home.path / "lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        try:
            yield home
        finally:
            _remove(home)


def _remove_if_abandoned(path: Path) -> None:
    if not (path / "lock").exists():
        return
    with (path / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        home = Home(path.resolve())
        end_processes(find_all(home).values(), patience_s=0)
        _remove(home)


def _remove(home: Home) -> None:
    remove_outside(home)
    shutil.rmtree(home.path)
