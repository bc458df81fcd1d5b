"""Redis holds only what may vanish; this opens the one client of a process, with timeouts that never hang."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import redis.asyncio
import redis.exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

SOCKET_TIMEOUT_S: Final = 0.25
RedisError = redis.asyncio.RedisError
NoScriptError = redis.exceptions.NoScriptError
Redis = redis.asyncio.Redis


@asynccontextmanager
async def connect(
    url: str, *, name: str, max_connections: int = 64, socket_timeout_s: float = SOCKET_TIMEOUT_S
) -> AsyncGenerator[Redis, None]:
    client = Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - its **kwargs are untyped
        url,
        client_name=name,
        socket_timeout=socket_timeout_s,
        socket_connect_timeout=SOCKET_TIMEOUT_S,
        retry=Retry(NoBackoff(), 0),
        max_connections=max_connections,
        decode_responses=False,
        protocol=3,
    )
    try:
        yield client
    finally:
        await client.aclose()
