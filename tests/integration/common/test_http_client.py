"""The client for calls between services: what it keeps open, and what it never takes for an answer."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from libs.common.http_client import AllBusy, HttpClient, NoAnswer

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def a_client(serve: Serve, *, max_connections: int = 2) -> AsyncGenerator[HttpClient, None]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = HttpClient(f"http://127.0.0.1:{port}/base", max_connections=max_connections, connect_s=0.3, keep_alive_s=5)
    try:
        yield client
    finally:
        client.close()
        server.close()


def answer(body: bytes, *headers: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", *headers, b"Content-Length: %d" % len(body), b"", body])


class Echo:
    """Answers with what was asked, over as many connections as it is given."""

    def __init__(self, *headers: bytes) -> None:
        self.connections = 0
        self.is_released = asyncio.Event()
        self._headers = headers

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
            except asyncio.IncompleteReadError:
                writer.close()
                return
            length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")), b":0")
            body = await reader.readexactly(int(length.partition(b":")[2]))
            if b"/held" in head:
                await self.is_released.wait()
            writer.write(answer(head.split(b"\r\n", 1)[0] + b"|" + body, *self._headers))


async def ask(client: HttpClient, target: str = "/a", *, timeout_s: float = 2, content: bytes | None = None) -> bytes:
    method = "GET" if content is None else "POST"
    return (await client.request(method, target, headers={}, content=content, timeout_s=timeout_s)).content


async def test_one_connection_serves_one_request_after_the_other() -> None:
    echo = Echo()
    async with a_client(echo) as client:
        assert await ask(client, "/a?b=c") == b"GET /base/a?b=c HTTP/1.1|"
        assert await ask(client, content=b"body") == b"POST /base/a HTTP/1.1|body"
        assert await ask(client, "/a b\r\nX: y") == b"GET /base/a%20b%0D%0AX:%20y HTTP/1.1|"
    assert echo.connections == 1


async def test_a_connection_the_service_wants_closed_is_not_used_again() -> None:
    echo = Echo(b"Connection: close")
    async with a_client(echo) as client:
        assert await ask(client) == await ask(client) == b"GET /base/a HTTP/1.1|"
    assert echo.connections == 2


async def test_an_answer_that_comes_too_late_meets_nobody_else() -> None:
    echo = Echo()
    async with a_client(echo, max_connections=1) as client:
        with pytest.raises(NoAnswer):
            await ask(client, "/held", timeout_s=0.1)
        given_up = asyncio.create_task(ask(client, "/held"))
        await asyncio.sleep(0)
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        echo.is_released.set()
        assert await ask(client, "/next") == b"GET /base/next HTTP/1.1|"


async def test_who_finds_all_connections_in_use_waits_for_one_but_not_for_ever() -> None:
    echo = Echo()
    async with a_client(echo, max_connections=1) as client:
        first = asyncio.create_task(ask(client, "/held"))
        await asyncio.sleep(0)
        with pytest.raises(AllBusy):
            await ask(client)
        second = asyncio.create_task(ask(client))
        await asyncio.sleep(0)
        echo.is_released.set()
        assert await first == b"GET /base/held HTTP/1.1|"
        assert await second == b"GET /base/a HTTP/1.1|"
    assert echo.connections == 1


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf",
        b"HTTP/1.1 200 OK\r\n\r\nno end in sight",
        b"not HTTP at all\r\n\r\n",
    ],
)
async def test_what_is_cut_off_or_unreadable_is_no_answer(said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    async with a_client(serve) as client:
        with pytest.raises(NoAnswer):
            await ask(client)


async def test_nobody_there_is_no_answer() -> None:
    client = HttpClient("http://127.0.0.1:9", max_connections=1, connect_s=0.3, keep_alive_s=5)
    for _ in range(2):  # and its place is given back
        with pytest.raises(NoAnswer):
            await ask(client)
