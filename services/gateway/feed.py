"""Live hints through Redis: one subscription connection for the whole process, dispatched to whoever listens.

Nothing depends on a hint arriving: whoever listens also looks into the tables, only less often.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

import structlog

from libs.common.redis import Redis, RedisError
from libs.common.together import Together

log = structlog.get_logger(__name__)

QUEUE_SIZE: Final = 256
"""A reader that stops reading costs this many messages at most; what it misses it fetches by sequence number."""
READ_TIMEOUT_S: Final = 5.0
RETRY_S: Final = 0.5


class Listener(Protocol):
    """A bounded queue, or what behaves like one."""

    def full(self) -> bool: ...
    def get_nowait(self) -> bytes: ...
    def put_nowait(self, item: bytes, /) -> None: ...


class LiveFeed:
    def __init__(self, redis: Redis) -> None:
        self._pubsub: Any = redis.pubsub(ignore_subscribe_messages=True)  # pyright: ignore[reportUnknownMemberType]
        self._listeners: dict[str, set[Listener]] = {}
        self._subscribed = asyncio.Event()
        # Those who come and go together share a command.
        self._changes = Together(self._change, name=lambda channel: channel)
        self.is_up = True

    async def run(self) -> None:
        """Read for ever. While Redis is away, listeners keep to their polling; channels are taken up again after."""
        while True:
            await self._subscribed.wait()
            try:
                message = await self._pubsub.get_message(timeout=READ_TIMEOUT_S)
                self.is_up = True
            except (RedisError, OSError, TimeoutError, RuntimeError) as error:
                if self.is_up:
                    log.warning("live_feed_down", error=type(error).__name__)
                self.is_up = False
                await asyncio.sleep(RETRY_S)
                await self._resubscribe()
                continue
            if message is not None:
                self._dispatch(message["channel"].decode(), message["data"])

    @asynccontextmanager
    async def listen(self, channel: str) -> AsyncGenerator[asyncio.Queue[bytes], None]:
        """What is published on the channel, the newest of it if there is more than a reader takes."""
        queue: asyncio.Queue[bytes] = asyncio.Queue(QUEUE_SIZE)
        async with self.ring(channel, queue):
            yield queue

    @asynccontextmanager
    async def ring(self, channel: str, listener: Listener) -> AsyncGenerator[None, None]:
        listeners = self._listeners.setdefault(channel, set())
        listeners.add(listener)
        try:
            if len(listeners) == 1:
                await self._changes.ask(channel)
            yield
        finally:
            listeners.discard(listener)
            if not listeners and self._listeners.pop(channel, None) is not None:
                self._changes.put(channel)  # nobody has to wait for that

    async def _change(self, channels: Sequence[str]) -> Sequence[None]:
        """Subscribe to what somebody listens to by now, and leave the others."""
        joined = [channel for channel in channels if channel in self._listeners]
        left = [channel for channel in channels if channel not in self._listeners]
        if joined:
            await self._try("subscribe", joined)
            self._subscribed.set()
        if left:
            await self._try("unsubscribe", left)
            if not self._listeners:
                self._subscribed.clear()
        return [None] * len(channels)

    def _dispatch(self, channel: str, data: bytes) -> None:
        for queue in self._listeners.get(channel, ()):
            if queue.full():
                queue.get_nowait()
            queue.put_nowait(data)

    async def _try(self, command: str, channels: Sequence[str]) -> None:
        try:
            await getattr(self._pubsub, command)(*channels)
        except (RedisError, OSError, TimeoutError) as error:
            self.is_up = False
            log.info("live_feed_command_failed", command=command, error=type(error).__name__)

    async def _resubscribe(self) -> None:
        if self._listeners:
            await self._try("subscribe", [next(iter(self._listeners))])

    async def close(self) -> None:
        await self._pubsub.aclose()
