"""What a served process owes whoever asks it, whatever loop it runs on."""

import asyncio
import statistics
import time
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from libs.common.process import Service, serving


async def _answer(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def test_the_body_of_an_answer_does_not_wait_until_its_head_was_acknowledged() -> None:
    service = Service(name="a-service", app=_answer, health_app=_answer)
    took_s: list[float] = []
    async with (
        serving(service, host="127.0.0.1", port=0) as running,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{running.port}") as client,
    ):
        for _ in range(21):
            began_at = time.perf_counter()
            await client.get("/")
            took_s.append(time.perf_counter() - began_at)
    # A delayed acknowledgement is 40 ms late at the least; without one an answer takes about one.
    assert statistics.median(took_s) < 0.035


REQUEST_S = 0.6


@pytest.fixture
async def port() -> AsyncGenerator[int, None]:
    """Of an application that reads the body and then takes longer to answer than a request may take to come."""

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] == "http.request" and message.get("more_body"):
            pass
        if message["type"] == "http.request":
            await asyncio.wait({asyncio.create_task(asyncio.Event().wait())}, timeout=2 * REQUEST_S)
            await _answer(_scope, receive, send)

    service = Service(name="a-service", app=app, health_app=app)
    async with serving(service, host="127.0.0.1", port=0, request_s=REQUEST_S) as running:
        yield running.port


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: a\r\n", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"],
    ids=["nothing", "a part of the line", "a part of the headers", "a part of the body"],
)
async def test_who_lets_a_request_drip_in_loses_the_connection(port: int, begun: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(begun)
    async with asyncio.timeout(10):
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()


async def test_an_answer_may_take_longer_than_its_request_and_the_connection_goes_on(port: int) -> None:
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        for _ in range(2):
            assert (await client.post("/", content=b"a" * 200_000)).text == "ok"


async def test_who_was_answered_once_may_not_let_the_next_request_drip_in_either(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(20):
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.write(b"GET / HTTP/1.1\r\nHo")
        with suppress(ConnectionResetError):
            assert await reader.read() == b""
    writer.close()


async def test_an_answer_leaves_in_one_piece() -> None:
    service = Service(name="a-service", app=_answer, health_app=_answer)
    async with serving(service, host="127.0.0.1", port=0) as running, asyncio.timeout(10):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        for _ in range(20):
            writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert (await reader.read(65_536)).endswith(b"ok")
        writer.close()


async def test_whoever_does_not_read_is_not_sent_more_than_the_buffers_hold() -> None:
    sent = 0

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1_000):
            await send({"type": "http.response.body", "body": b"a" * 100_000, "more_body": True})
            sent += 1

    service = Service(name="a-service", app=app, health_app=app)
    async with serving(service, host="127.0.0.1", port=0) as running, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1_000)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert await reader.read(1)
        assert 0 < sent < 500  # the system's own buffers take some megabytes
        writer.transport.abort()
