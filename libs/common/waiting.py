"""Waiting for a while at most, and ending what runs, so that a cancellation is never lost.

`asyncio.wait_for` of Python 3.11 swallows a cancellation that comes together with what it waits for: under load a loop
built on it may go on for ever, and its process with it. `asyncio.timeout` does not.
"""

import asyncio
from collections.abc import Iterable


async def woken(event: asyncio.Event, *, within_s: float) -> bool:
    """Whether the event was set within the time."""
    try:
        async with asyncio.timeout(within_s):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def end(tasks: Iterable[asyncio.Task[None]], *, patience_s: float, every_s: float = 1.0) -> None:
    """Cancel tasks until the last has ended: after `patience_s` again, since a library below one may have lost it."""
    pending, pause_s = set(tasks), patience_s
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=pause_s)
        pause_s = every_s
