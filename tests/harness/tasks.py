"""Loops that run beside a test and end with it; one that fails fails the test."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager


async def _run(loop: Callable[[], Awaitable[None]]) -> None:
    await loop()


@asynccontextmanager
async def running(*loops: Callable[[], Awaitable[None]]) -> AsyncGenerator[None, None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_run(loop)) for loop in loops]
        yield
        for task in tasks:
            task.cancel()
