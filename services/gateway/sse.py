"""Server-sent events on the wire (WHATWG HTML, section 9.2), and how many of them one user may have open."""

from collections import Counter
from collections.abc import AsyncIterable, Generator
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import orjson
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from libs.common.errors import LimitExceeded, Unavailable

HEARTBEAT: Final = b": still here\n\n"
HEARTBEAT_S: Final = 15.0


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

    def stream(self, user_id: UUID, frames: AsyncIterable[bytes]) -> "EventStream":
        return EventStream(frames, slots=self, user_id=user_id)


class EventStream(StreamingResponse):
    """Takes its slot when it is sent, and gives it back however that ends.

    Nothing is buffered for a slow reader beyond the socket's own buffers: the next event is fetched when the last one
    was taken. One that stops reading keeps its slot, and so what it can cost is bounded, too.
    """

    def __init__(self, frames: AsyncIterable[bytes], *, slots: StreamSlots, user_id: UUID) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(frames, media_type="text/event-stream", headers=headers)
        self._slots = slots
        self._user_id = user_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._slots.slot(self._user_id):
            await super().__call__(scope, receive, send)


def frame(*, event: str, data: Any, event_id: str) -> bytes:
    """One event; JSON has no raw line breaks, so one data line is always enough."""
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (event_id.encode(), event.encode(), orjson.dumps(data, default=str))
