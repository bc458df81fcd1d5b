"""Redis holds only what may vanish; this opens the one client of a process, with timeouts that never hang."""

import asyncio
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

_NOTHING: Final = object()


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

    The client opens it and signs in. From then on are left out its pool, which tries for each command whether its
    connection is alive and tells observers of that, and the streams with their buffers, locks and waits: in calm hours
    the limiter's answer comes a tenth sooner without these.
    """

    def __init__(self, client: Redis) -> None:
        self._pool = client.connection_pool
        self._connection: AbstractConnection | None = None
        self._wire: _Wire | None = None

    async def ask(self, *command: str | bytes | int) -> Any:
        """The answer, for one at a time. Raises RedisError; what broke the connection lets the next command mend it."""
        wire = self._wire
        if wire is None or not wire.is_open:
            wire = self._wire = await self._open()
        return await wire.ask(_pack(command))

    async def _open(self) -> "_Wire":
        if self._connection is None:
            self._connection = await self._pool.get_connection()
        else:
            await self._connection.disconnect(nowait=True)
            await self._connection.connect()
        writer = cast("asyncio.StreamWriter", self._connection._writer)  # pyright: ignore[reportPrivateUsage]  # noqa: SLF001
        return _Wire(cast("asyncio.Transport", writer.transport))


class _Wire(asyncio.Protocol):
    """Takes the place of a connection's streams: an answer wakes who asked."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self.is_open = True
        self._transport = transport
        self._replies = hiredis.Reader(replyError=_refusal, notEnoughData=_NOTHING)
        self._answer: asyncio.Future[Any] | None = None
        self._loop = asyncio.get_running_loop()
        self._streams = transport.get_protocol()
        transport.set_protocol(self)

    async def ask(self, packed: bytes) -> Any:
        answer = self._answer = self._loop.create_future()
        self._transport.write(packed)
        try:
            return await answer
        except asyncio.CancelledError:  # what still comes must not be taken for the next answer
            self._close()
            raise

    def data_received(self, data: bytes) -> None:
        self._replies.feed(data)
        while (reply := self._replies.gets()) is not _NOTHING:
            if not isinstance(reply, hiredis.PushNotification):
                self._tell(reply)

    def connection_lost(self, exc: Exception | None) -> None:
        self._streams.connection_lost(exc)  # whoever closes the client waits for them
        self.is_open = False
        self._tell(redis.exceptions.ConnectionError("the connection was closed"))

    def _tell(self, reply: Any) -> None:
        answer, self._answer = self._answer, None
        if answer is None or answer.done():
            self._close()  # nobody asked, or who did has gone
        elif isinstance(reply, RedisError):
            answer.set_exception(reply)
        else:
            answer.set_result(reply)

    def _close(self) -> None:
        self.is_open = False
        self._transport.abort()


def _refusal(text: str) -> RedisError:
    kind = NoScriptError if text.startswith("NOSCRIPT") else redis.exceptions.ResponseError
    return kind(text)
