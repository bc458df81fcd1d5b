"""The HTTP side: API calls with their keys, versions, idempotency and faults; pages and control beside them."""

import asyncio
import base64
import binascii
import re
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import cast

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from devkit.stripe import calls, control, faults, pages
from devkit.stripe.calls import Answer
from devkit.stripe.clocks import Timekeeper
from devkit.stripe.deliveries import Deliverer
from devkit.stripe.errors import ApiError
from devkit.stripe.faults import Fault
from devkit.stripe.forms import Params, from_json, parse_form
from devkit.stripe.routes import resolve
from devkit.stripe.world import API_VERSION, Call, Handler, World

VERSION_SHAPE = re.compile(r"\d{4}-\d{2}-\d{2}(\.[a-z]+)?")
LONGEST_KEY = 255
ABORT = "devkit.abort"


class ConnectionCutter:
    """Lets a handler close the connection without an answer, which ASGI itself has no word for."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # uvicorn's `send` is a bound method of the object that holds the transport; this is the one place that knows.
        cycle = getattr(send, "__self__", None)
        transport = getattr(cycle, "transport", None)
        if transport is not None:
            scope[ABORT] = transport.abort
        await self.app(scope, receive, send)


async def cut(request: Request) -> None:
    """Close the connection abruptly; the caller sees it reset, with no status at all."""
    cast("Callable[[], None]", request.scope[ABORT])()
    await asyncio.sleep(0.05)  # the server notices before this returns, and so sends nothing


class Api:
    """Answers `/v1/*` and `/v2/*`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self._in_flight: set[str] = set()

    async def answer(self, request: Request) -> Response:
        call = Call(
            method=request.method,
            path=request.url.path,
            params=Params({}),
            request_id=self.world.new_id("req"),
            idempotency_key=request.headers.get("idempotency-key"),
        )
        fault: Fault | None = None
        try:
            _authenticate(request)
            _check_headers(request, call)
            call.params = Params(await _read(request))
            handler, call.ids = resolve(call.method, call.path)
            with self.world.store.transaction():
                fault = faults.take(self.world, call.method, call.path)
            with self._alone(call):
                return await self._suffer(request, call, handler, fault)
        except ApiError as error:
            calls.log(self.world, call, error.status, body=orjson.dumps(error.body()))
            return _response(call, Answer(status=error.status, body=orjson.dumps(error.body())), fault)

    def _alone(self, call: Call) -> "_InFlight":
        return _InFlight(self._in_flight, call.idempotency_key if call.method == "POST" else None)

    async def _suffer(self, request: Request, call: Call, handler: Handler, fault: Fault | None) -> Response:
        if fault is None:
            return _response(call, calls.perform(self.world, call, handler), None)
        if fault.kind == "delay":
            await asyncio.sleep(fault.delay_s)
        if fault.is_applied:
            answer = calls.perform(self.world, call, handler)
            if fault.kind == "delay":
                return _response(call, answer, fault)
        calls.log(self.world, call, None, fault=fault.kind)
        if fault.kind.endswith("status"):
            return _response(call, Answer(status=fault.status, body=orjson.dumps(fault.error().body())), fault)
        if fault.kind.endswith("hang"):
            await asyncio.sleep(fault.delay_s)
        await cut(request)
        return Response(status_code=500)


class _InFlight:
    """Holds an idempotency key while its call runs; a second call under it meanwhile is a conflict."""

    def __init__(self, keys: set[str], key: str | None) -> None:
        self._keys = keys
        self._key = key

    def __enter__(self) -> None:
        if self._key is None:
            return
        if self._key in self._keys:
            raise ApiError(
                409,
                "idempotency_error",
                "There is currently another in-progress request using this Idempotency-Key.",
                code="idempotency_key_in_use",
            )
        self._keys.add(self._key)

    def __exit__(self, *_: object) -> None:
        if self._key is not None:
            self._keys.discard(self._key)


def _authenticate(request: Request) -> None:
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    key = value.strip()
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key).decode().partition(":")[0]
        except (binascii.Error, UnicodeDecodeError) as error:
            raise ApiError(401, "invalid_request_error", "Malformed basic authorization.") from error
    if not key:
        raise ApiError(401, "invalid_request_error", "You did not provide an API key.")
    if not key.startswith("sk_test_") or key == "sk_test_":
        shown = f"{key[:8]}{'*' * 8}{key[-4:]}" if len(key) > 16 else "*" * 8  # noqa: PLR2004 - enough to hide
        raise ApiError(401, "invalid_request_error", f"Invalid API Key provided: {shown}")


def _check_headers(request: Request, call: Call) -> None:
    version = request.headers.get("stripe-version")
    if version is not None and VERSION_SHAPE.fullmatch(version) is None:
        raise ApiError.invalid(f"Invalid Stripe API version: {version}")
    if call.idempotency_key is not None and len(call.idempotency_key) > LONGEST_KEY:
        raise ApiError(400, "idempotency_error", f"Idempotency keys may be up to {LONGEST_KEY} characters long.")


async def _read(request: Request) -> dict[str, object]:
    if request.method == "GET":
        return parse_form(request.url.query)
    body = await request.body()
    if request.headers.get("content-type", "").startswith("application/json"):
        try:
            return cast("dict[str, object]", from_json(orjson.loads(body or b"{}")))
        except orjson.JSONDecodeError as error:
            raise ApiError.invalid("Invalid JSON in the request body.") from error
    return parse_form("&".join(part for part in (request.url.query, body.decode()) if part))


def _response(call: Call, answer: Answer, fault: Fault | None) -> Response:
    headers = {
        "Request-Id": call.request_id or "",
        "Stripe-Version": API_VERSION,
        "Cache-Control": "no-cache, no-store",
        **(fault.headers() if fault is not None else {}),
    }
    if call.idempotency_key is not None and call.method == "POST":
        headers["Idempotency-Key"] = call.idempotency_key
    if answer.is_replay:
        headers["Idempotent-Replayed"] = "true"
    return Response(answer.body, answer.status, headers, media_type="application/json")


def _end_with(loop: asyncio.Task[None]) -> None:
    """End the process with the loop, so that it is started again.

    One that still answers but delivers nothing would look to its users like payments that are lost.
    """
    if not loop.cancelled() and loop.exception() is not None:
        signal.raise_signal(signal.SIGTERM)


def build_app(world: World) -> ASGIApp:
    """The whole HTTP surface; its lifespan runs the clocks and the deliveries."""
    deliverer, timekeeper = Deliverer(world), Timekeeper(world)
    world.on_commit = [deliverer.wake, timekeeper.wake]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with asyncio.TaskGroup() as group:
            loops = [group.create_task(deliverer.run()), group.create_task(timekeeper.run())]
            for loop in loops:
                loop.add_done_callback(_end_with)
            yield
            for loop in loops:
                loop.cancel()

    api = Api(world)
    methods = ["GET", "POST", "DELETE"]
    app = Starlette(
        routes=[
            Mount("/_emulator", routes=control.routes(world)),
            Route("/v1/{path:path}", api.answer, methods=methods),
            Route("/v2/{path:path}", api.answer, methods=methods),
            *pages.routes(world),
        ],
        lifespan=lifespan,
    )
    return ConnectionCutter(app)
