"""Redis holds only what may vanish; this opens the one client of a process, with timeouts that never hang."""

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, cast

import hiredis
import redis.asyncio
import redis.exceptions
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

SOCKET_TIMEOUT_S: Final = 0.25
RedisError = redis.asyncio.RedisError
NoScriptError = redis.exceptions.NoScriptError
Redis = redis.asyncio.Redis
# Its own types know commands of one word only.
_pack: Final = cast("Callable[[tuple[str | bytes | int, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]


@asynccontextmanager
async def connect(
    url: str, *, name: str, max_connections: int = 64, socket_timeout_s: float | None = SOCKET_TIMEOUT_S
) -> AsyncGenerator[Redis, None]:
    """`socket_timeout_s` is None for those who bound each command themselves."""
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


class Line:
    """One connection kept at hand, for one who sends command after command and bounds their time.

    The client takes a connection out of its pool for each command, tries whether it is alive, tells observers of all
    that and puts it back.
    """

    def __init__(self, client: Redis) -> None:
        self._pool = client.connection_pool
        self._connection: AbstractConnection | None = None

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer, for one at a time. Raises RedisError; what broke the connection lets the next command mend it."""
        if self._connection is None:
            self._connection = await self._pool.get_connection()
        await self._connection.send_packed_command(_pack(command), check_health=False)
        return cast("Any", await self._connection.read_response())
