"""Server-sent events on the wire (WHATWG HTML, section 9.2), and how many of them one user may have open."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, Generator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from libs.common.errors import LimitExceeded, Unavailable

HEARTBEAT: Final = b": still here\n\n"
HEARTBEAT_S: Final = 15.0
_DETACHED: Final = "detached_stream"
_END: Final[Message] = {"type": "http.response.body", "body": b"", "more_body": False}


class TooManyStreams(LimitExceeded):
    code = "gateway.too_many_streams"


class StreamsFull(Unavailable):
    code = "gateway.streams_full"


class StreamSlots:
    """Open streams of this process: a cap for each user, so that one cannot take what is there for all."""

    def __init__(self, *, per_user: int, in_all: int) -> None:
        self._per_user = per_user
        self._in_all = in_all
        self._open: Counter[UUID] = Counter()

    @contextmanager
    def slot(self, user_id: UUID) -> Generator[None, None, None]:
        """Raises TooManyStreams, or StreamsFull when this process has all it can take."""
        if self._open[user_id] >= self._per_user:
            raise TooManyStreams(
                f"{self._per_user} streams of yours are open; close one first.",
                retry_after_s=5,
                limit=self._per_user,
            )
        if self._open.total() >= self._in_all:
            raise StreamsFull("No more streams can be opened right now.", retry_after_s=5)
        self._open[user_id] += 1
        try:
            yield
        finally:
            self._open[user_id] -= 1
            if not self._open[user_id]:
                del self._open[user_id]

    def stream(self, user_id: UUID, frames: AsyncGenerator[bytes, None]) -> "EventStream":
        return EventStream(frames, slots=self, user_id=user_id)


class EventStream(Response):
    """Takes its slot when it is sent, and gives it back however that ends.

    Nothing is buffered for a slow reader beyond the socket's own buffers: the next event is fetched when the last one
    was taken. One that stops reading keeps its slot, and so what it can cost is bounded, too.

    The routes' part of the stack only leaves the stream in the request's state; `run_detached` runs it from further
    out. A stream lasts for hours, and the frames of routing and error handling would be a third of what it costs.
    """

    media_type = "text/event-stream"

    def __init__(self, frames: AsyncGenerator[bytes, None], *, slots: StreamSlots, user_id: UUID) -> None:
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._frames = frames
        self._slots = slots
        self._user_id = user_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del receive, send
        slot = self._slots.slot(self._user_id)
        slot.__enter__()  # here, where a refusal still becomes an answer
        scope["state"][_DETACHED] = (self, slot)

    async def run(self, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        pump = asyncio.create_task(self._pump(send))
        try:
            # The server tells of the end, too, whoever ended it: the reader, or we.
            while (await receive())["type"] != "http.disconnect":
                pass
        finally:
            pump.cancel()
            with suppress(asyncio.CancelledError):
                await pump

    async def _pump(self, send: Send) -> None:
        try:
            async for chunk in self._frames:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception:  # the answer has begun: it ends in order, and the client resumes by number
            await send(_END)
            raise
        finally:
            await self._frames.aclose()
        await send(_END)


async def run_detached(scope: Scope, receive: Receive, send: Send) -> None:
    """Run the stream that the routes have left behind, if they have."""
    left = _take_detached(scope)
    if left is None:
        return
    stream, slot = left
    try:
        await stream.run(receive, send)
    finally:
        slot.__exit__(None, None, None)


def drop_detached(scope: Scope) -> None:
    """Nobody waits for the stream any more: only its slot is given back."""
    left = _take_detached(scope)
    if left is not None:
        left[1].__exit__(None, None, None)


def _take_detached(scope: Scope) -> tuple[EventStream, AbstractContextManager[None]] | None:
    return scope.get("state", {}).pop(_DETACHED, None)


class Bell:
    """What a stream waits at. Any number of hints is one ring; it costs no task, and no queue for what it never reads.

    To those who hint it is a queue that is never full.
    """

    __slots__ = ("_is_rung", "_waiting")

    def __init__(self) -> None:
        self._is_rung = False
        self._waiting: asyncio.Future[None] | None = None

    def full(self) -> bool:
        return False

    def get_nowait(self) -> bytes:
        return b""

    def put_nowait(self, _hint: bytes) -> None:
        self._is_rung = True
        _wake(self._waiting)

    async def wait(self, timeout_s: float) -> bool:
        """Whether it was rung since it was last waited for; False when the time is up."""
        if not self._is_rung:
            loop = asyncio.get_running_loop()
            self._waiting = loop.create_future()
            timer = loop.call_later(timeout_s, _wake, self._waiting)
            try:
                await self._waiting
            finally:
                timer.cancel()
                self._waiting = None
        was_rung, self._is_rung = self._is_rung, False
        return was_rung


def _wake(waiting: "asyncio.Future[None] | None") -> None:
    if waiting is not None and not waiting.done():
        waiting.set_result(None)


def frame(*, event: str, data: Any, event_id: str) -> bytes:
    """One event; JSON has no raw line breaks, so one data line is always enough."""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), event.encode(), orjson.dumps(data, default=str))
