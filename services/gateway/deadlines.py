"""An answer in the promised time, whatever it waits for: at the end of it a 503, and the work goes on without anybody.

The bounds of single waits add up: one request asks the database, then a service, then the database again. Cancelling
is no way out, since a driver that waits for a silent server is as slow to be cancelled. So the one who asked is
answered, and what was under way comes to its own end, as it does for one who hung up.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import structlog
from starlette.types import Message, Send

from libs.common.errors import Unavailable

log = structlog.get_logger(__name__)

ANSWER_WITHIN_S: Final = 4.8
"""Of the 5 s that are promised; a single call of a service may take 4.5."""

T = TypeVar("T")
_unattended: Final[set[asyncio.Task[Any]]] = set()
"""What was given up and is not at its end; the event loop alone would not keep it."""


class NoAnswerInTime(Unavailable):
    code = "gateway.no_answer_in_time"


async def in_time(
    work: Callable[[Send], Awaitable[T]],
    send: Send,
    *,
    clear_up: Callable[[], None],
    within_s: float = ANSWER_WITHIN_S,
) -> T:
    """What the work returns. Raises NoAnswerInTime if it has not begun to answer by then; after that nobody hears it.

    `clear_up` is called when work that was given up has come to its end.
    """
    has_begun = is_given_up = False

    async def heard(message: Message) -> None:
        nonlocal has_begun
        if not is_given_up:
            has_begun = True
            await send(message)

    task = asyncio.ensure_future(work(heard))
    try:
        await asyncio.wait({task}, timeout=within_s)
        if has_begun or task.done():
            return await task
    except asyncio.CancelledError:
        task.cancel()
        raise
    is_given_up = True
    _unattended.add(task)
    task.add_done_callback(lambda ended: _end(ended, clear_up))
    raise NoAnswerInTime("What this needs does not answer; try again.", retry_after_s=2)


def _end(task: asyncio.Task[Any], clear_up: Callable[[], None]) -> None:
    _unattended.discard(task)
    clear_up()
    if not task.cancelled() and (error := task.exception()) is not None:
        log.info("unattended_work_failed", error=type(error).__name__)
