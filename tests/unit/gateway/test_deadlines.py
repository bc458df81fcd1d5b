"""Whoever asks is answered in time, and what was asked comes to its end all the same."""

import asyncio

import pytest
from starlette.types import Message, Send

from services.gateway.deadlines import NoAnswerInTime, in_time

SOON_S = 0.05


class Listener:
    """Hears what is sent, and whether what was given up has been cleared up after."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.is_clear = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.heard.append(message)


async def test_an_answer_in_time_is_the_answer() -> None:
    listener = Listener()

    async def work(send: Send) -> str:
        await send({"type": "http.response.start"})
        return "done"

    assert await in_time(work, listener.send, clear_up=listener.is_clear.set, within_s=SOON_S) == "done"
    assert listener.heard == [{"type": "http.response.start"}]
    assert not listener.is_clear.is_set()


async def test_what_hangs_is_answered_for_and_goes_on_unheard() -> None:
    listener, is_up, came_to_its_end = Listener(), asyncio.Event(), asyncio.Event()

    async def work(send: Send) -> None:
        await is_up.wait()
        await send({"type": "http.response.start"})
        came_to_its_end.set()

    with pytest.raises(NoAnswerInTime) as raised:
        await in_time(work, listener.send, clear_up=listener.is_clear.set, within_s=SOON_S)
    assert raised.value.retry_after_s is not None
    is_up.set()
    async with asyncio.timeout(5):
        await came_to_its_end.wait()
        await listener.is_clear.wait()
    assert listener.heard == []


async def test_an_answer_that_has_begun_may_take_its_time() -> None:
    listener, is_up = Listener(), asyncio.Event()

    async def work(send: Send) -> None:
        await send({"type": "http.response.start"})
        await is_up.wait()
        await send({"type": "http.response.body"})

    asyncio.get_running_loop().call_later(3 * SOON_S, is_up.set)
    await in_time(work, listener.send, clear_up=listener.is_clear.set, within_s=SOON_S)
    assert len(listener.heard) == 2


async def test_what_fails_in_time_fails() -> None:
    async def work(_send: Send) -> None:
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        await in_time(work, Listener().send, clear_up=lambda: None, within_s=SOON_S)


async def test_who_stops_waiting_stops_the_work() -> None:
    has_begun, was_cancelled = asyncio.Event(), asyncio.Event()

    async def work(_send: Send) -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    waiting = asyncio.create_task(in_time(work, Listener().send, clear_up=lambda: None, within_s=5))
    await has_begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(5):
        await was_cancelled.wait()
