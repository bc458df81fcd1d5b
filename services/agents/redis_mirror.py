"""Shows run events live through Redis pub/sub, channel `run:{run_id}`, each as `{"seq", "type", "data"}`.

Who waits for a run's end and for nothing else listens to `run-end:{run_id}`: one message, the run as it ended, or an
empty one where that is not at hand.

Nobody ever waits for Redis here: events are queued and sent by a loop of their own, and dropped while Redis is away.
"""

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import orjson
import structlog

from libs.common.redis import SOCKET_TIMEOUT_S, Line, Redis, RedisError
from services.agents.runs.domain import Run, RunEvent
from services.agents.runs.rendering import render_run

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 10_000
BATCH_SIZE: Final = 200
PAUSE_WHEN_AWAY_S: Final = 0.5
_PUBLISH_ALL: Final = "for i = 1, #ARGV, 2 do redis.call('PUBLISH', ARGV[i], ARGV[i + 1]) end"
"""One command and one answer for all that waits: an answer each took the client more than the sending."""


class RedisMirror:
    def __init__(self, redis: Redis) -> None:
        self._redis = Line(redis)
        self._waiting: deque[tuple[str, bytes]] = deque(maxlen=MAX_WAITING)
        """Where it is full the oldest goes: readers have most likely found it in the table."""
        self._is_asked = asyncio.Event()
        self._is_up = True

    @property
    def is_up(self) -> bool:
        return self._is_up

    def offer(self, run_id: UUID, events: Sequence[RunEvent], *, ended: Run | None = None) -> None:
        channel = f"run:{run_id}"
        for event in events:
            # Keys in order, as in the table's pages: the same bytes live and replayed (jsonb keeps no order).
            body = orjson.dumps(
                {"seq": event.seq, "type": event.type, "data": dict(event.data)}, option=orjson.OPT_SORT_KEYS
            )
            self._waiting.append((channel, body))
            if event.is_terminal:
                whole = orjson.dumps(render_run(ended)) if ended is not None else b""
                self._waiting.append((f"run-end:{run_id}", whole))
        self._is_asked.set()

    async def run(self) -> None:
        while True:
            await self._is_asked.wait()
            self._is_asked.clear()
            while self._waiting:
                await self._send([self._waiting.popleft() for _ in range(min(BATCH_SIZE, len(self._waiting)))])

    async def _send(self, batch: Sequence[tuple[str, bytes]]) -> None:
        try:
            async with asyncio.timeout(SOCKET_TIMEOUT_S):
                await self._redis.ask("EVAL", _PUBLISH_ALL, 0, *(part for message in batch for part in message))
        except (RedisError, OSError, TimeoutError) as error:
            if self._is_up:
                log.warning("live_mirror_away", error=type(error).__name__)
            self._is_up = False
            await asyncio.sleep(PAUSE_WHEN_AWAY_S)
        else:
            if not self._is_up:
                log.info("live_mirror_back")
            self._is_up = True
