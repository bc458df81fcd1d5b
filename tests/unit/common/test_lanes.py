"""A lane answers what is in order; the route answers everything else, with the request as it came."""

from collections.abc import AsyncGenerator
from typing import Any

import httpx
import orjson
import pytest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from libs.common.errors import Conflict
from libs.common.inputs import Input
from libs.common.lanes import JsonLane, Lanes

JSON = {"Content-Type": "application/json"}


class Order(Input):
    count: int


async def route(scope: Scope, receive: Receive, send: Send) -> None:
    """Tells what it got, all of it."""
    parts: list[bytes] = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            break
    await Response(b"route: " + b"".join(parts))(scope, receive, send)


async def serve(_: Scope, content: bytes, order: Order) -> Response | None:
    if order.count == 0:
        return None
    if order.count < 0:
        raise Conflict("There is no such thing.")
    return Response(orjson.dumps({"lane": order.count, "bytes": len(content)}))


@pytest.fixture
async def client() -> AsyncGenerator[httpx.AsyncClient, None]:
    lanes = Lanes(route, [JsonLane(path="/orders", model=Order, serve=serve)])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(lanes), base_url="http://lanes") as one:
        yield one


async def test_a_lane_answers_what_is_in_order(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", content=b'{"count": 3}', headers={"Content-Type": "application/json; v=1"})
    assert answer.json() == {"lane": 3, "bytes": 12}


@pytest.mark.parametrize(
    ("content", "headers"),
    [
        (b'{"count": 0}', JSON),
        (b'{"count": "many"}', JSON),
        (b'{"count": 1, "more": 2}', JSON),
        (b"{", JSON),
        (b"\xff", JSON),
        (b"[" * 100_000, JSON),
        (b"", JSON),
        (b'{"count": 3}', {"Content-Type": "text/plain"}),
        (b'{"count": 3}', {}),
    ],
)  # fmt: skip
async def test_the_route_gets_everything_else_as_it_came(
    client: httpx.AsyncClient, content: bytes, headers: dict[str, str]
) -> None:
    assert (await client.post("/orders", content=content, headers=headers)).content == b"route: " + content


@pytest.mark.parametrize(("method", "path"), [("PUT", "/orders"), ("POST", "/orders/"), ("POST", "/")])
async def test_other_requests_do_not_come_into_the_lane(client: httpx.AsyncClient, method: str, path: str) -> None:
    answer = await client.request(method, path, content=b'{"count": 3}', headers=JSON)
    assert answer.content == b'route: {"count": 3}'


async def test_a_refusal_is_told_as_everywhere(client: httpx.AsyncClient) -> None:
    answer = await client.post("/orders", content=b'{"count": -1}', headers=JSON)
    assert (answer.status_code, answer.headers["content-type"]) == (409, "application/problem+json")
    assert answer.json()["detail"] == "There is no such thing."


async def test_nobody_is_answered_who_hung_up_before_all_was_sent() -> None:
    sent: list[Any] = []
    messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])

    async def receive() -> Any:
        return next(messages)

    async def send(message: Any) -> None:
        sent.append(message)

    lanes = Lanes(route, [JsonLane(path="/orders", model=Order, serve=serve)])
    await lanes({"type": "http", "method": "POST", "path": "/orders", "headers": []}, receive, send)
    assert sent == []
