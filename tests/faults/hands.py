"""What only a hand on the machine can do to a stack: stop a program in its tracks, write past every right."""

import os
import signal
import subprocess
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import psycopg

from ops.stack.stack import Stack


@contextmanager
def frozen(stack: Stack, program: str) -> Generator[None]:
    """Stopped by a signal: it holds its connections and answers nobody. The harshest way to be away."""
    pids = [stack.pid(program), *children(stack.pid(program))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def children(pid: int) -> list[int]:
    """PostgreSQL's server processes go on answering while their postmaster is stopped."""
    listed = subprocess.run(("/usr/bin/pgrep", "-P", str(pid)), capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]


def superuser(stack: Stack, statement: str, *values: Any) -> None:
    with psycopg.connect(stack.operator_environment()["SUPERUSER_DATABASE_URL"], autocommit=True) as conn:
        conn.execute(statement.encode(), values)
