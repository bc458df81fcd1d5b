"""A disk without room for the tables that grow: megabytes of memory as a file system, mounted by root."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import asyncpg
import pytest

from ops.stack.stack import Stack

GROWING_TABLES: Final = (
    "gateway.outbox",
    "agents.outbox",
    "agents.run_events",
    "metering.outbox",
    "metering.holds",
    "metering.inbox",
)
_SIZE: Final = "48m"
_SIZE_OF_A_HOME: Final = "2600m"
"""Memory is taken only by what is written: the data of a stack, and what fills the rest down to 2 GB."""
_BLOCK: Final = bytes(65_536)


class CannotMount(Exception):
    """The right to mount a file system is missing."""


@contextmanager
def memory_disk(folder: Path, *options: str) -> Generator[None, None, None]:
    mounted = subprocess.run(
        ("/bin/mount", "-t", "tmpfs", "-o", ",".join(options), "venture-disk", str(folder)),
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        raise CannotMount(mounted.stderr)
    try:
        yield
    finally:
        subprocess.run(("/bin/umount", "--lazy", str(folder)), check=True)


@contextmanager
def small_disk(stack: Stack) -> Generator[Path, None, None]:
    """Its folder, which PostgreSQL owns."""
    owner = Path(f"/proc/{stack.pid('postgres')}").stat().st_uid
    folder = Path(pwd.getpwuid(owner).pw_dir if owner else "/tmp") / f"venture-disk-{os.getpid()}"  # noqa: S108
    folder.mkdir()
    try:
        with memory_disk(folder, f"size={_SIZE}", f"uid={owner}", "mode=0700"):
            yield folder
    except CannotMount:
        pytest.skip("a disk of a few megabytes needs the right to mount one")
    finally:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def place_for_a_home() -> Generator[Path, None, None]:
    """For a whole stack, on a disk with a little more than doctor wants to be free; on the usual one without the right.

    Not below the folders of the test run, which PostgreSQL's user cannot enter: its data would be put elsewhere.
    """
    folder = Path(tempfile.mkdtemp(prefix="venture-disk-", dir="/var/tmp"))
    folder.chmod(0o755)
    try:
        with ExitStack() as mounted:
            with suppress(CannotMount):
                mounted.enter_context(memory_disk(folder, f"size={_SIZE_OF_A_HOME}", "mode=0755"))
            yield folder
    finally:
        shutil.rmtree(folder)


def fill_but(free: int, file: Path) -> None:
    """Leave so many bytes free on the disk of the file, or what is free if that is less."""
    too_much = shutil.disk_usage(file.parent).free - free
    with file.open("wb") as out:
        os.posix_fallocate(out.fileno(), 0, max(1, too_much))


def fill(file: Path) -> None:
    """Until nothing more goes in."""
    with file.open("wb", buffering=0) as out, suppress(OSError):
        while True:
            out.write(_BLOCK)


async def on_disk(url: str, tables: Sequence[str], folder: Path) -> None:
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(f"CREATE TABLESPACE small_disk LOCATION '{folder}'")
        for table in tables:
            await connection.execute(f"ALTER TABLE {table} SET TABLESPACE small_disk")
    finally:
        await connection.close()


async def off_disk(url: str, tables: Sequence[str]) -> None:
    connection = await asyncpg.connect(url)
    try:
        for table in tables:
            await connection.execute(f"ALTER TABLE {table} SET TABLESPACE pg_default")
        await connection.execute("DROP TABLESPACE small_disk")
    finally:
        await connection.close()
