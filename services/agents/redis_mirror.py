"""Shows run events live through Redis pub/sub, channel `run:{run_id}`, each as `{"seq", "type", "data"}`.

Who waits for a run's end and for nothing else listens to `run-end:{run_id}`: one message, the run as it ended, or an
empty one where that is not at hand.

Nobody ever waits for Redis here: events are queued and sent by a loop of their own, and dropped while Redis is away.
"""

import asyncio
from collections.abc import Sequence
from typing import Final
from uuid import UUID

import orjson
import structlog

from libs.common.redis import Redis, RedisError
from services.agents.runs.domain import Run, RunEvent
from services.agents.runs.rendering import render_run

log = structlog.get_logger(__name__)

MAX_WAITING: Final = 10_000
BATCH_SIZE: Final = 200
PAUSE_WHEN_AWAY_S: Final = 0.5


class RedisMirror:
    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._waiting: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(MAX_WAITING)
        self._is_up = True

    @property
    def is_up(self) -> bool:
        return self._is_up

    def offer(self, run_id: UUID, events: Sequence[RunEvent], *, ended: Run | None = None) -> None:
        for event in events:
            # Keys in order, as in the table's pages: the same bytes live and replayed (jsonb keeps no order).
            body = orjson.dumps(
                {"seq": event.seq, "type": event.type, "data": dict(event.data)}, option=orjson.OPT_SORT_KEYS
            )
            self._put(f"run:{run_id}", body)
            if event.is_terminal:
                self._put(f"run-end:{run_id}", orjson.dumps(render_run(ended)) if ended is not None else b"")

    def _put(self, channel: str, body: bytes) -> None:
        if self._waiting.full():
            self._waiting.get_nowait()  # the oldest goes: readers have most likely found it in the table
        self._waiting.put_nowait((channel, body))

    async def run(self) -> None:
        while True:
            batch = [await self._waiting.get()]
            while not self._waiting.empty() and len(batch) < BATCH_SIZE:
                batch.append(self._waiting.get_nowait())
            try:
                await self._publish(batch)
            except (RedisError, OSError, TimeoutError) as error:
                if self._is_up:
                    log.warning("live_mirror_away", error=type(error).__name__)
                self._is_up = False
                await asyncio.sleep(PAUSE_WHEN_AWAY_S)
            else:
                if not self._is_up:
                    log.info("live_mirror_back")
                self._is_up = True

    async def _publish(self, batch: Sequence[tuple[str, bytes]]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for channel, body in batch:
                pipe.publish(channel, body)  # pyright: ignore[reportUnknownMemberType] - its **kwargs are untyped
            await pipe.execute()
