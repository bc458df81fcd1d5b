"""Whoever asks is answered in time, and what was asked comes to its end all the same."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import pytest
from starlette.types import Message, Send

from services.gateway.deadlines import NoAnswerInTime, in_time

SOON_S = 0.05
T = TypeVar("T")


class Listener:
    """Hears what is sent and what is refused, and whether what was given up has been cleared up after."""

    def __init__(self) -> None:
        self.heard: list[Message] = []
        self.refusals: list[NoAnswerInTime] = []
        self.is_refused = asyncio.Event()
        self.is_clear = asyncio.Event()

    async def send(self, message: Message) -> None:
        self.heard.append(message)

    async def refuse(self, error: NoAnswerInTime, send: Send) -> None:
        self.refusals.append(error)
        await send({"type": "refused"})
        self.is_refused.set()

    async def hear(self, work: Callable[[Send], Awaitable[T]], *, within_s: float = SOON_S) -> T | None:
        return await in_time(work, self.send, refuse=self.refuse, clear_up=self.is_clear.set, within_s=within_s)


async def test_an_answer_in_time_is_the_answer() -> None:
    listener = Listener()

    async def work(send: Send) -> str:
        await send({"type": "http.response.start"})
        return "done"

    assert await listener.hear(work) == "done"
    assert listener.heard == [{"type": "http.response.start"}]
    assert not listener.is_clear.is_set()


@pytest.mark.parametrize("ending", ["answers", "fails"])
async def test_what_hangs_is_answered_for_and_goes_on_unheard(ending: str) -> None:
    listener, is_up = Listener(), asyncio.Event()

    async def work(send: Send) -> str:
        await is_up.wait()
        await send({"type": "http.response.start"})
        if ending == "fails":
            raise KeyError("nobody hears this either")
        return "done"

    waiting = asyncio.create_task(listener.hear(work))
    async with asyncio.timeout(5):
        await listener.is_refused.wait()
    assert not waiting.done()
    assert not listener.is_clear.is_set()
    is_up.set()
    assert await waiting is None
    assert listener.is_clear.is_set()
    assert listener.heard == [{"type": "refused"}]
    assert [error.retry_after_s for error in listener.refusals] == [2]


async def test_an_answer_that_has_begun_may_take_its_time() -> None:
    listener, is_up = Listener(), asyncio.Event()

    async def work(send: Send) -> None:
        await send({"type": "http.response.start"})
        await is_up.wait()
        await send({"type": "http.response.body"})

    asyncio.get_running_loop().call_later(3 * SOON_S, is_up.set)
    await listener.hear(work)
    assert len(listener.heard) == 2
    assert listener.refusals == []


async def test_what_fails_in_time_fails() -> None:
    async def work(_send: Send) -> None:
        raise KeyError("a fault of ours")

    with pytest.raises(KeyError):
        await Listener().hear(work)


async def test_who_stops_waiting_stops_the_work() -> None:
    has_begun, was_cancelled = asyncio.Event(), asyncio.Event()

    async def work(_send: Send) -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled.set()
            raise

    waiting = asyncio.create_task(Listener().hear(work, within_s=5))
    await has_begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert was_cancelled.is_set()
