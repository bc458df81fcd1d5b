"""A TCP proxy that breaks on command: what passes between two parts is delayed, swallowed, cut or refused.

A silent peer behind a proxy looks otherwise than one whose packets are dropped: the proxy's kernel goes on
acknowledging, so that keep-alives and TCP timeouts never fire, and only the timeouts of our own code bound the wait.
"""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal
from urllib.parse import urlsplit, urlunsplit

Fault = Literal["none", "latency", "silence", "refusal"]
LATENCY_S: Final = 0.1
"""Each way: a round trip takes 200 ms longer."""
_CHUNK: Final = 65_536


class FaultProxy:
    """One edge. `silence` swallows every byte and keeps connections open, `refusal` cuts all and accepts none."""

    def __init__(self, host: str, port: int) -> None:
        self._upstream = (host, port)
        self._fault: Fault = "none"
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._audible = asyncio.Event()
        self._audible.set()
        self.port = 0

    async def open(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    def via(self, url: str) -> str:
        """The URL with this proxy in place of its host."""
        parts = urlsplit(url)
        credentials = parts.netloc.rpartition("@")[0]
        address = f"127.0.0.1:{self.port}"
        return urlunsplit(parts._replace(netloc=f"{credentials}@{address}" if credentials else address))

    async def set(self, fault: Fault) -> None:
        self._fault = fault
        if fault == "silence":
            self._audible.clear()
        else:
            self._audible.set()
        if fault == "refusal":
            await self.close()
        elif self._server is None:
            await self.open()

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._audible.wait()
            to_server = await asyncio.open_connection(*self._upstream)
            self._writers.add(to_server[1])
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, to_server[1]))
                    group.create_task(self._pump(to_server[0], writer))
            finally:
                self._writers.discard(to_server[1])
                to_server[1].close()
        except* (OSError, asyncio.IncompleteReadError):
            pass  # one side is gone; the other learns it by the close below
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(_CHUNK):
            if self._fault == "latency":
                await asyncio.sleep(LATENCY_S)
            await self._audible.wait()
            writer.write(data)
            await writer.drain()
        with suppress(OSError):
            writer.write_eof()


@asynccontextmanager
async def open_proxy(url: str) -> AsyncGenerator[FaultProxy, None]:
    parts = urlsplit(url)
    if parts.hostname is None or parts.port is None:
        raise ValueError(f"no address to stand in front of: {url}")
    proxy = FaultProxy(parts.hostname, parts.port)
    await proxy.open()
    try:
        yield proxy
    finally:
        await proxy.set("none")
        await proxy.close()
