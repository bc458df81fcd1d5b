"""HTTP/1.1 to a service of our own: kept-alive connections, one answer each at a time, parsed by httptools.

A client for any server has much to do that this one has not: no redirects, cookies, proxies, encodings or TLS. Proxying
a read through httpx took the gateway 2.5 ms of processor with its connections at work, through this 0.2 ms.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httptools
import orjson

IDLE_S: Final = 60.0
"""Below the services' own 75 s: a connection is never written to at the moment its server closes it."""
_FORBIDDEN: Final = frozenset("\r\n\0")


class WireError(Exception):
    """The service could not be asked, or did not answer as HTTP."""


class WireBusy(WireError):
    """All connections stayed at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """`headers` by their names in small letters; of one that came twice, the last."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def is_success(self) -> bool:
        return 200 <= self.status_code < 300  # noqa: PLR2004

    def json(self) -> Any:
        return orjson.loads(self.content)


class _Wire(asyncio.Protocol):
    """One connection. Broken or answered out of turn, it is closed and never used again."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: asyncio.Future[Answer] | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self.is_open = False
        self.idle_since = 0.0

    def ask(self, head: bytes, content: bytes) -> asyncio.Future[Answer]:
        if self._transport is None:
            raise WireError("there is no connection yet")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(head + content)
        return self._answer

    def close(self) -> None:
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    # Of asyncio ------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one by its methods alone
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(WireError(str(error)))

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(WireError(str(exc or "the connection was closed")))

    def _fail(self, error: WireError) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.close()

    # Of httptools ----------------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._headers, self._body = {}, []
        if self._answer is None or self._answer.done():
            raise WireError("an answer nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if not self._parser.should_keep_alive():
            self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(
                Answer(status_code=self._parser.get_status_code(), headers=self._headers, content=b"".join(self._body))
            )


class WireClient:
    """Up to `max_connections` to one service; who asks beyond waits in line for `connect_s`, as for a connection."""

    def __init__(self, base_url: str, *, max_connections: int, connect_s: float) -> None:
        url = urlsplit(base_url)
        if url.scheme != "http" or not url.hostname:
            raise ValueError(f"{base_url!r} is not the address of a service: http://host:port")
        self._host, self._port = url.hostname, url.port or 80
        self._host_line = f"Host: {url.netloc}\r\n"
        self._prefix = url.path.rstrip("/")
        self._room = asyncio.Semaphore(max_connections)
        self._idle: deque[_Wire] = deque()
        self._connect_s = connect_s

    async def request(
        self, method: str, target: str, *, headers: Mapping[str, str], content: bytes | None, timeout_s: float
    ) -> Answer:
        """`target`: path and query, percent-encoded. Raises WireBusy, WireError, TimeoutError after `timeout_s`."""
        head = self._head(method, target, headers, content)
        try:
            async with asyncio.timeout(self._connect_s):
                await self._room.acquire()
        except TimeoutError:
            raise WireBusy("all connections are at work") from None
        wire: _Wire | None = None
        try:
            wire = self._take_idle() or await self._connect()
            async with asyncio.timeout(timeout_s):
                answer = await wire.ask(head, content or b"")
        except BaseException:
            if wire is not None:
                wire.close()  # its answer may still come, and would be the next one's
            raise
        else:
            if wire.is_open:
                wire.idle_since = asyncio.get_running_loop().time()
                self._idle.append(wire)
            else:
                wire.close()
            return answer
        finally:
            self._room.release()

    @property
    def idle(self) -> int:
        """How many connections are open and not at work."""
        return sum(wire.is_open for wire in self._idle)

    async def aclose(self) -> None:
        while self._idle:
            self._idle.pop().close()

    def _take_idle(self) -> _Wire | None:
        """The one used last, so that those a burst needed grow old and are closed."""
        oldest_allowed = asyncio.get_running_loop().time() - IDLE_S
        while self._idle and (not self._idle[0].is_open or self._idle[0].idle_since < oldest_allowed):
            self._idle.popleft().close()
        while self._idle:
            wire = self._idle.pop()
            if wire.is_open:
                return wire
        return None

    async def _connect(self) -> _Wire:
        try:
            async with asyncio.timeout(self._connect_s):
                _, wire = await asyncio.get_running_loop().create_connection(_Wire, self._host, self._port)
        except (OSError, TimeoutError) as error:
            raise WireError(f"no connection: {type(error).__name__}") from error
        return wire

    def _head(self, method: str, target: str, headers: Mapping[str, str], content: bytes | None) -> bytes:
        if method == "HEAD":
            raise ValueError("HEAD has no body to wait for: ask with GET")
        lines = f"{method} {self._prefix}{target} HTTP/1.1\r\n{self._host_line}"
        for name, value in headers.items():
            if not _FORBIDDEN.isdisjoint(value) or not _FORBIDDEN.isdisjoint(name):
                raise ValueError("a header must not contain line breaks")
            lines += f"{name}: {value}\r\n"
        if content is not None or method in {"POST", "PUT", "PATCH"}:
            lines += f"Content-Length: {len(content or b'')}\r\n"
        if not target.startswith("/") or not target.isascii() or not _FORBIDDEN.isdisjoint(target) or " " in target:
            raise ValueError("a target is a path, percent-encoded")
        return f"{lines}\r\n".encode("latin-1")


@asynccontextmanager
async def open_wire(base_url: str, *, max_connections: int, connect_s: float) -> AsyncGenerator[WireClient, None]:
    client = WireClient(base_url, max_connections=max_connections, connect_s=connect_s)
    try:
        yield client
    finally:
        await client.aclose()
