"""The few busiest routes, past the framework's routing, dependencies and layers. Pure ASGI.

A lane serves what is plainly in order. Everything else (a body that does not validate, somebody who is not signed in)
goes on to the route of the same name with the request as it came, and so is refused exactly as by that route.
"""

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common.errors import VentureError
from libs.common.http import problem
from libs.common.http_server import WHOLE

_JSON: Final = "application/json"

Body = TypeVar("Body", bound=BaseModel)


class Lane(Protocol):
    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str:
        """What metrics and the log call the request by, as well."""
        ...

    async def answer(self, scope: Scope, body: bytes) -> Response | None:
        """The answer, or None if the route is to give it. Raises VentureError."""
        ...


class Lanes:
    def __init__(self, app: ASGIApp, lanes: Sequence[Lane]) -> None:
        self._app = app
        self._lanes: Mapping[tuple[str, str], Lane] = {(lane.method, lane.path): lane for lane in lanes}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lane = self._lanes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if lane is None:
            await self._app(scope, receive, send)
            return
        body, receive_again = b"", receive
        try:
            if scope.get("state", {}).get("has_body", True):
                body = await _read(receive)
                receive_again = _again(body, receive)
            response = await lane.answer(scope, body)
        except _HungUp:
            return
        except VentureError as error:
            response = problem(error)
        if response is None:
            await self._app(scope, receive_again, send)
            return
        scope["route"] = lane
        if WHOLE in scope.get("extensions", ()) and _is_plain(response):
            whole = {"status": response.status_code, "headers": response.raw_headers, "body": response.body}
            await send({"type": WHOLE, **whole})
        else:
            await response(scope, receive, send)


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonLane(Generic[Body]):
    """A body of JSON that is what `model` says, for `serve`."""

    method: str = "POST"
    path: str
    model: type[Body]
    serve: Callable[[Scope, bytes, Body], Awaitable[Response | None]]

    async def answer(self, scope: Scope, body: bytes) -> Response | None:
        media_type = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
        if media_type != _JSON:
            return None
        try:
            # The framework's own parser, so that both ways take the same for JSON.
            read = self.model.model_validate(json.loads(body))
        except (ValidationError, ValueError, RecursionError):
            return None
        return await self.serve(scope, body, read)


def header(scope: Scope, name: bytes) -> str | None:
    """The first of this name, None if there is none."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _is_plain(response: Response) -> bool:
    """Whether all there is to it is its status, headers and body."""
    return type(response).__call__ is Response.__call__ and response.background is None


class _HungUp(Exception):
    """The client is gone, and not all of its request has come."""


async def _read(receive: Receive) -> bytes:
    parts: list[bytes] = []
    while True:
        message = await receive()
        if message["type"] != "http.request":
            raise _HungUp
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """The request once more, whole; after it whatever the client still does."""
    is_told = False

    async def receive_again() -> Message:
        nonlocal is_told
        if is_told:
            return await receive()
        is_told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive_again
