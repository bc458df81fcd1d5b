"""Parts of pages sent again as they change (server-sent events), for as long as whoever looks may look."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final

from fastapi import Request, Response

from libs.common.errors import Unavailable
from libs.common.waiting import woken
from services.gateway import sse
from services.gateway.console.door import Door, Entrant
from services.gateway.sse import StreamSlots

EVERY_S: Final = 2.0
LOOK_AGAIN_S: Final = 5.0
"""How often an open stream asks whether its reader is still an admin."""

Draw = Callable[[], Awaitable[tuple[str, bool]]]
"""The part as it is now, and whether it will never change again."""


class LiveParts:
    def __init__(self, *, door: Door, slots: StreamSlots, stopping: asyncio.Event) -> None:
        self._door = door
        self._slots = slots
        self._stopping = stopping

    def follow(self, request: Request, draw: Draw, *, every_s: float = EVERY_S) -> Response:
        entrant: Entrant = request.state.entrant
        return self._slots.stream(entrant.user_id, self._frames(request, draw, every_s))

    async def _frames(self, request: Request, draw: Draw, every_s: float) -> AsyncGenerator[bytes, None]:
        sent, sent_at, looked_at = "", time.monotonic(), time.monotonic()
        yield sse.HEARTBEAT
        while not self._stopping.is_set():
            try:
                if time.monotonic() - looked_at > LOOK_AGAIN_S:
                    looked_at = time.monotonic()
                    if not await self._door.is_still_in(request):
                        break
                part, is_final = await draw()
            except Unavailable:  # an open stream waits for what is away instead of breaking
                part, is_final = sent, False
            if part != sent:
                sent, sent_at = part, time.monotonic()
                yield _frame("fragment", part)
            elif time.monotonic() - sent_at > sse.HEARTBEAT_S:
                sent_at = time.monotonic()
                yield sse.HEARTBEAT
            if is_final:
                break
            await woken(self._stopping, within_s=every_s)
        if not self._stopping.is_set():
            yield _frame("done", "")  # without it the browser would connect again


def _frame(event: str, text: str) -> bytes:
    lines = "".join(f"data: {line}\n" for line in (text.splitlines() or [""]))
    return f"event: {event}\n{lines}\n".encode()
