"""A process of a running stack, started otherwise for a while: with another program, or in another environment."""

import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx

from ops.failure import Failure
from ops.files import write_private
from ops.programs import script_path
from ops.stack.stack import Stack
from tests.faults.soak.ports import Ports
from tests.harness.patience import eventually

FAKETIME: Final = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def with_clock(off: str) -> Callable[[str], str]:
    """The wall clock alone: what measures durations is not changed on any machine."""
    exports = f"export LD_PRELOAD={FAKETIME} FAKETIME={off} FAKETIME_DONT_FAKE_MONOTONIC=1 DONT_FAKE_MONOTONIC=1"
    return lambda script: script.replace("\nexec ", f"\n{exports}\nexec ", 1)


@asynccontextmanager
async def started_otherwise(stack: Stack, service: str, change: Callable[[str], str]) -> AsyncGenerator[None, None]:
    """Replica 1 of the service runs by its changed start script inside, and as ever afterwards."""
    path = script_path(stack.home, f"{service}-1")
    usual = path.read_text(encoding="utf-8")
    unusual = change(usual)
    if unusual == usual:
        raise AssertionError("the change changes nothing")
    write_private(path, unusual)
    try:
        await _restart(stack, service)
        yield
    finally:
        write_private(path, usual)
        await _restart(stack, service)


async def _restart(stack: Stack, service: str) -> None:
    """By SIGTERM; the supervisor starts it again. Ready is what answers live: dependencies have their own time."""
    before, url = 0, Ports(stack).url(service, 1)
    try:
        before = stack.pid(service)
        os.kill(before, signal.SIGTERM)
    except (Failure, ProcessLookupError):
        pass  # it is being started again at this moment, and by the script as it is now or was: see below

    async def is_another() -> bool:
        try:
            if stack.pid(service) == before:
                return False
            async with httpx.AsyncClient(timeout=2) as client:
                return (await client.get(f"{url}/health/live")).status_code == 200
        except (Failure, httpx.TransportError):
            return False

    await eventually(is_another, within_s=60, every_s=0.1)
