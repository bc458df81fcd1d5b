"""A disk without room for the tables that grow: megabytes of memory as a file system, mounted by root."""

import os
import pwd
import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
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
_BLOCK: Final = bytes(65_536)


@contextmanager
def small_disk(stack: Stack) -> Generator[Path, None, None]:
    """Its folder, which PostgreSQL owns."""
    owner = Path(f"/proc/{stack.pid('postgres')}").stat().st_uid
    folder = Path(pwd.getpwuid(owner).pw_dir if owner else "/tmp") / f"venture-disk-{os.getpid()}"  # noqa: S108
    folder.mkdir()
    mount = subprocess.run(
        ("/bin/mount", "-t", "tmpfs", "-o", f"size={_SIZE},uid={owner},mode=0700", "venture-disk", str(folder)),
        capture_output=True,
        check=False,
    )
    if mount.returncode != 0:
        folder.rmdir()
        pytest.skip("a disk of a few megabytes needs the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(("/bin/umount", "--lazy", str(folder)), check=True)
        with suppress(OSError):
            folder.rmdir()


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
