"""An answer in the promised time, whatever it waits for: at the end of it a 503, and the work goes on without anybody.

The bounds of single waits add up: one request asks the database, then a service, then the database again. Cancelling
is no way out, since a driver that waits for a silent server is as slow to be cancelled. So the one who asked is
answered, and what was under way comes to its own end, as it does for one who hung up.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import structlog
from starlette.types import Message, Send

from libs.common.errors import Unavailable

log = structlog.get_logger(__name__)

ANSWER_WITHIN_S: Final = 4.8
"""Of the 5 s that are promised; a single call of a service may take 4.5."""

T = TypeVar("T")


class NoAnswerInTime(Unavailable):
    code = "gateway.no_answer_in_time"


class _Heard:
    """The way to the one who asked: open to the work until its time is over, and then to the refusal alone."""

    __slots__ = ("_has_begun", "_refuse", "_send", "refusal")

    def __init__(self, send: Send, refuse: Callable[[NoAnswerInTime, Send], Awaitable[None]]) -> None:
        self._send = send
        self._refuse = refuse
        self._has_begun = False
        self.refusal: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        if self.refusal is None:
            self._has_begun = True
            await self._send(message)

    def give_up(self) -> None:
        if not self._has_begun:
            self.refusal = asyncio.create_task(self._say_so())

    async def _say_so(self) -> None:
        error = NoAnswerInTime("What this needs does not answer; try again.", retry_after_s=2)
        await self._refuse(error, self._send)


async def in_time(
    work: Callable[[Send], Awaitable[T]],
    send: Send,
    *,
    refuse: Callable[[NoAnswerInTime, Send], Awaitable[None]],
    clear_up: Callable[[], None],
    within_s: float = ANSWER_WITHIN_S,
) -> T | None:
    """What the work returns, None if nobody heard it: it had not begun to answer in time, and `refuse` answered.

    `clear_up` is called when such work has come to its end. A timer, and no task for the work: that alone was a tenth
    of a read.
    """
    heard = _Heard(send, refuse)
    timer = asyncio.get_running_loop().call_later(within_s, heard.give_up)
    try:
        result = await work(heard.send)
    except Exception as error:
        if heard.refusal is None:
            raise
        log.info("unattended_work_failed", error=type(error).__name__)
        result = None
    finally:
        timer.cancel()
    if heard.refusal is None:
        return result
    clear_up()
    await heard.refusal
    return None
