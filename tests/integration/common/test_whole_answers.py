"""Answers that an application gives whole, as they arrive at whoever asked over a socket of their own."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from libs.common.http_server import WHOLE
from libs.common.process import Service, serving

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


async def _app(scope: Any, _receive: Any, send: Any) -> None:
    headers = [(b"content-length", b"2")]
    if scope["path"] == "/split":
        headers.append((b"location", b"/a\r\nset-cookie: b=c"))
    if scope["path"] == "/parts":
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"in"})
    else:
        assert WHOLE in scope["extensions"]
        await send({"type": WHOLE, "status": 201, "headers": headers, "body": b"ok"})
    if scope["path"] == "/twice":
        await send({"type": WHOLE, "status": 201, "headers": headers, "body": b"no"})


@pytest.fixture
async def port() -> AsyncGenerator[int, None]:
    service = Service(name="a-service", app=_app, health_app=_app)
    async with serving(service, host="127.0.0.1", port=0) as running:
        yield running.port


async def exchange(port: int, sent: bytes) -> bytes:
    """All that is answered until the server closes: `sent` must end with a request for that."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(10):
        writer.write(sent)
        answered = await reader.read()
    writer.close()
    return answered


LAST = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"


async def test_requests_that_come_at_once_are_answered_in_their_order_and_the_last_one_closes(port: int) -> None:
    parts = GET.replace(b"/ ", b"/parts ")
    answers = (await exchange(port, GET + parts + GET + LAST)).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"201", b"200", b"201", b"201"]
    assert [answer[-2:] for answer in answers] == [b"ok", b"in", b"ok", b"ok"]
    assert [b"connection: close" in answer for answer in answers] == [False, False, False, True]
    assert all(b"\r\ndate: " in answer for answer in answers)


async def test_who_asks_for_the_head_gets_no_body(port: int) -> None:
    head = b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    answered = await exchange(port, head)
    assert answered.startswith(b"HTTP/1.1 201 ")
    assert answered.endswith(b"\r\n\r\n")


async def test_a_header_cannot_smuggle_in_another_one(port: int) -> None:
    answered = await exchange(port, GET.replace(b"/ ", b"/split "))
    assert answered.startswith(b"HTTP/1.1 500 ")
    assert b"set-cookie" not in answered


async def test_a_second_answer_does_not_reach_whoever_asks_next(port: int) -> None:
    answered = await exchange(port, GET.replace(b"/ ", b"/twice ") + LAST)
    assert answered.count(b"HTTP/1.1 201 ") == answered.count(b"ok") >= 1
    assert b"no" not in answered
