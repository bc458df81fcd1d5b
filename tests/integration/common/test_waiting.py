"""What must end ends, also when a cancellation is lost on the way."""

import asyncio

from libs.common.waiting import end, woken


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    lost: list[str] = []

    async def careless() -> None:
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                lost.append("once")
                if len(lost) > 1:
                    raise

    async def careful() -> None:
        await asyncio.Event().wait()

    tasks = [asyncio.create_task(careless()), asyncio.create_task(careful())]
    await asyncio.wait(tasks, timeout=0.01)
    async with asyncio.timeout(5):
        await end(tasks, patience_s=0.05, every_s=0.05)
    assert len(lost) == 2
    assert all(task.cancelled() for task in tasks)


async def test_a_wait_tells_whether_it_was_woken() -> None:
    event = asyncio.Event()
    assert not await woken(event, within_s=0.01)
    event.set()
    assert await woken(event, within_s=0.01)


async def test_a_cancellation_that_comes_with_the_event_is_not_lost() -> None:
    event = asyncio.Event()

    async def loop() -> None:
        while True:
            await woken(event, within_s=60)

    task = asyncio.create_task(loop())
    await asyncio.wait({task}, timeout=0.01)
    event.set()
    task.cancel()
    await asyncio.wait({task}, timeout=5)
    assert task.cancelled()
