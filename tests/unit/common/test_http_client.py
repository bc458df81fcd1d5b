"""The client of our own services, against servers that answer as servers do, and as they should not."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from libs.common.http_client import AllBusy, Answer, HttpClient, NoAnswer, open_client
from tests.harness.patience import eventually

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Twice: a\r\nX-Twice: b\r\n\r\nhi"


class Served:
    """What the server has seen."""

    def __init__(self) -> None:
        self.connections = 0
        self.heads: list[bytes] = []
        self.bodies: list[bytes] = []

    async def read(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        self.heads.append(head)
        self.bodies.append(await reader.readexactly(length))


@asynccontextmanager
async def client_of(serve: Serve, served: Served, *, max_connections: int = 4) -> AsyncGenerator[HttpClient, None]:
    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        try:
            await serve(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone: most of these tests end so
        finally:
            writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"http://127.0.0.1:{port}/base/"
    async with server, open_client(url, max_connections=max_connections, connect_s=0.5, keep_alive_s=60) as client:
        yield client


def answering(served: Served, *answers: bytes) -> Serve:
    """Give the answers one after the other, the last one for ever; a connection that got `b""` is closed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await served.read(reader)
            answer = answers[min(len(served.heads), len(answers)) - 1]
            if not answer:
                return
            for start in range(0, len(answer), 7):  # in pieces, as a network may
                writer.write(answer[start : start + 7])
                await writer.drain()

    return serve


async def none_is_idle(client: HttpClient) -> bool:
    return client.idle == 0


async def has_seen(served: Served, connections: int) -> bool:
    return served.connections == connections


async def get(client: HttpClient, target: str = "/it?a=1", *, timeout_s: float = 5) -> Answer:
    return await client.request("GET", target, headers={"X-One": "1"}, content=None, timeout_s=timeout_s)


async def test_asks_over_one_kept_connection_and_reads_whole_answers() -> None:
    served = Served()
    async with client_of(answering(served, OK), served) as client:
        first, answer = await get(client), await get(client)
        assert first == answer
        posted = await client.request("POST", "/it", headers={}, content=b"body", timeout_s=5)
    assert (answer.status_code, answer.content, answer.headers["x-twice"]) == (200, b"hi", "b")
    assert posted.is_success
    assert served.connections == 1
    assert served.heads[0].startswith(b"GET /base/it?a=1 HTTP/1.1\r\nhost: 127.0.0.1:")
    assert b"\r\nX-One: 1\r\n" in served.heads[0]
    assert served.bodies[-1] == b"body"


@pytest.mark.parametrize(
    ("raw", "status", "content"),
    [
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 200, b"abcde"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 404, b""),
    ],
)
async def test_reads_every_framing(raw: bytes, status: int, content: bytes) -> None:
    served = Served()
    async with client_of(answering(served, raw), served) as client:
        assert [await get(client), await get(client)] == [
            Answer(status_code=status, raw_headers=answer_headers(raw), content=content)
        ] * 2
    assert served.connections == 1


def answer_headers(raw: bytes) -> list[tuple[bytes, bytes]]:
    lines = raw.split(b"\r\n\r\n")[0].split(b"\r\n")[1:]
    return [(name.lower(), value) for name, value in (line.split(b": ") for line in lines)]


async def test_an_answer_that_says_close_ends_its_connection_and_nothing_else() -> None:
    served = Served()
    closing = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
    async with client_of(answering(served, closing, OK), served) as client:
        assert (await get(client)).status_code == 200
        assert (await get(client)).content == b"hi"
    assert served.connections == 2


async def test_a_connection_closed_while_idle_is_not_asked_again() -> None:
    served = Served()

    async def one_each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await served.read(reader)
        writer.write(OK)
        await writer.drain()

    async with client_of(one_each, served) as client:
        for _ in range(3):
            assert (await get(client)).content == b"hi"
            await eventually(lambda: none_is_idle(client))
    assert served.connections == 3


@pytest.mark.parametrize("broken", [b"", b"SSH-2.0-OpenSSH\r\n", OK[:-1]], ids=["nothing", "no HTTP", "half"])
async def test_a_broken_answer_is_an_error_and_the_next_is_asked_afresh(broken: bytes) -> None:
    served = Served()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await served.read(reader)
        writer.write(broken if served.connections == 1 else OK)
        await writer.drain()

    async with client_of(serve, served) as client:
        with pytest.raises(NoAnswer):
            await get(client)
        assert (await get(client)).content == b"hi"


async def test_what_comes_unasked_is_never_taken_for_an_answer() -> None:
    served = Served()
    async with client_of(answering(served, OK + b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil", OK), served) as it:
        assert (await get(it)).content == b"hi"
        await eventually(lambda: none_is_idle(it))
        assert (await get(it)).content == b"hi"
    assert served.connections == 2


async def test_an_answer_too_late_is_not_the_next_ones() -> None:
    served = Served()
    is_late = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await served.read(reader)
        if served.connections == 1:
            await is_late.wait()
        writer.write(OK if served.connections == 2 else OK.replace(b"hi", b"no"))
        await writer.drain()

    async with client_of(serve, served) as client:
        with pytest.raises(NoAnswer):
            await get(client, timeout_s=0.05)
        is_late.set()
        assert (await get(client)).content == b"hi"
    assert served.connections == 2


async def test_who_gives_up_leaves_no_connection_behind() -> None:
    served = Served()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await served.read(reader)
        if served.connections > 1:
            writer.write(OK)
            await writer.drain()
        else:
            await reader.read()  # no answer, until the client hangs up

    async with client_of(serve, served, max_connections=1) as client:
        task = asyncio.create_task(get(client))
        await eventually(lambda: has_seen(served, 1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await get(client)).content == b"hi"


async def test_beyond_the_connections_one_waits_in_line_and_then_is_told() -> None:
    served = Served()
    gate = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await served.read(reader)
            await gate.wait()
            writer.write(OK)
            await writer.drain()

    async with client_of(serve, served, max_connections=2) as client:
        at_work = [asyncio.create_task(get(client)) for _ in range(2)]
        await eventually(lambda: has_seen(served, 2))
        with pytest.raises(AllBusy):
            await get(client)
        waiting = asyncio.create_task(get(client))
        gate.set()
        assert [answer.content for answer in await asyncio.gather(*at_work, waiting)] == [b"hi"] * 3
    assert served.connections == 2


async def test_no_server_is_an_error() -> None:
    served = Served()
    async with client_of(answering(served, OK), served) as client:
        pass
    with pytest.raises(NoAnswer):
        await get(client)


@pytest.mark.parametrize(
    ("target", "sent"), [("/a b", b"/a%20b"), ("/a\r\nX: y", b"/a%0D%0AX:%20y"), ("/ä", b"/%C3%A4")]
)
async def test_a_target_is_one_word_whatever_is_in_it(target: str, sent: bytes) -> None:
    served = Served()
    async with client_of(answering(served, OK), served) as client:
        await get(client, target)
    assert served.heads[0].startswith(b"GET /base" + sent + b" HTTP/1.1\r\n")


async def test_a_header_cannot_smuggle_another() -> None:
    served = Served()
    async with client_of(answering(served, OK), served) as client:
        await client.request("GET", "/", headers={"A": "b\r\nC: d"}, content=None, timeout_s=1)
    assert b"C: d" not in served.heads[0]
