"""Waiting for an outcome instead of sleeping for a guess."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")


async def eventually(probe: Callable[[], Awaitable[T]], *, within_s: float = 10, every_s: float = 0.02) -> T:
    """Return the first truthy answer of `probe`; fail with its last answer when the time is up."""
    deadline = time.monotonic() + within_s
    while True:
        answer = await probe()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s; the last answer was {answer!r}")
        await asyncio.sleep(every_s)
