"""HTTP at the edge of every service: request ids, traces, metrics, one log line a request, and problem+json errors."""

import asyncio
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Final, NamedTuple, cast

import orjson
import structlog
from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from opentelemetry.trace import SpanKind
from prometheus_client import Histogram
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from libs.common import service_tokens
from libs.common.errors import BadRequest, Invalid, ServiceTokenRefused, TooLarge, VentureError
from libs.common.ids import new_id_text
from libs.common.logs import log_request
from libs.common.redaction import redact_text
from libs.common.service_tokens import Caller
from libs.common.telemetry import REQUESTS, current_trace_id, span, trace_id_of
from libs.common.traffic import Traffic

log = structlog.get_logger(__name__)

PROBLEM_JSON: Final = "application/problem+json"
MAX_BODY_BYTES: Final = 1024 * 1024
_REQUEST_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_ANSWER_HEADERS: Final = "answer_headers"
_DEFAULT_HEADERS: Final = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class Problem(BaseModel):
    """RFC 9457 problem document; more members may follow by `code`."""

    type: str = "about:blank"
    title: str
    status: int
    code: str
    detail: str
    trace_id: str | None = None


def problem(error: VentureError) -> Response:
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(error.status).phrase,
        "status": error.status,
        "code": error.code,
        "detail": error.detail,
        **error.fields,
        "trace_id": current_trace_id(),
    }
    headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    return Response(orjson.dumps(body, default=str), error.status, headers, media_type=PROBLEM_JSON)


class _Refused(VentureError):
    """The framework's own refusals (no route, wrong method) in our shape."""

    code = "refused"

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status  # pyright: ignore[reportAttributeAccessIssue] - per instance here, per class elsewhere
        self.code = {404: "not_found", 405: "method_not_allowed"}.get(status, "refused")  # pyright: ignore[reportAttributeAccessIssue]


def create_app(*, title: str, version: str, openapi_url: str | None = None) -> FastAPI:
    """A FastAPI without its defaults that surprise clients: no slash redirects, no `{"detail"}` errors."""
    app = FastAPI(
        title=title,
        version=version,
        openapi_url=openapi_url,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Edge makes the one span and the one log line of a request; the framework's own would be three more spans,
        # and its log of refused input repeats that input.
        telemetry={"tracing": False, "metrics": False, "logs": False, "operation_spans": False},
    )
    app.add_exception_handler(VentureError, _on_venture_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(Exception, _on_unexpected)
    return app


async def _on_venture_error(_request: Request, error: Exception) -> Response:
    return problem(cast("VentureError", error))


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    return problem(describe_validation(error))


def describe_validation(error: Exception) -> VentureError:
    """Say where the input is wrong and why, without repeating it: it may be secret."""
    errors: Sequence[Mapping[str, Any]] = error.errors() if isinstance(error, RequestValidationError) else []
    if any(e.get("type") == "json_invalid" for e in errors):
        return BadRequest("The body is not valid JSON.")
    places = [{"field": ".".join(str(part) for part in e["loc"][1:]) or "body", "reason": e["msg"]} for e in errors]
    first = "; ".join(f"{place['field']}: {place['reason']}" for place in places[:3])
    return Invalid(f"The request is not acceptable: {first}.", errors=places)


async def _on_http_exception(_request: Request, error: Exception) -> Response:
    refusal = cast("HTTPException", error)
    status = refusal.status_code
    detail = {404: "There is nothing here.", 405: "This method is not allowed here."}.get(
        status, "The request could not be read."
    )
    response = problem(_Refused(status, detail))
    response.headers.update(refusal.headers or {})
    return response


async def _on_unexpected(_request: Request, _error: Exception) -> Response:
    return problem(VentureError("Something went wrong on our side; the trace id identifies it."))


class Edge:
    """Pure ASGI, outermost: gives each request an id and a span, bounds its body, and accounts for its answer."""

    def __init__(
        self, app: ASGIApp, *, service: str, max_body_bytes: int = MAX_BODY_BYTES, traffic: Traffic | None = None
    ) -> None:
        self._app = app
        self._service = service
        self._traffic = traffic or Traffic()
        self._max_body_bytes = max_body_bytes
        self._timers: dict[tuple[str, str, int], Histogram] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers: Mapping[bytes, bytes] = dict(scope["headers"])
        request_id, shown_id = _request_id(headers)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        state["has_body"] = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        traceparent = headers.get(b"traceparent", b"").decode("latin-1") or None
        started = time.perf_counter()
        exchange = _Exchange(send, state.setdefault(_ANSWER_HEADERS, [(b"x-request-id", request_id.encode())]))
        with span(
            f"{scope['method']} http", service=self._service, kind=SpanKind.SERVER, traceparent=traceparent
        ) as current:
            try:
                await self._run(scope, receive, exchange, headers)
            finally:
                # The pattern, not the path: bounded for metrics, free of ids. A mounted application has a root path.
                route = scope.get("root_path", "") + getattr(scope.get("route"), "path", "unmatched")
                elapsed_s = time.perf_counter() - started
                if current.is_recording():
                    current.update_name(f"{scope['method']} {route}")
                    current.set_attribute("http.response.status_code", exchange.status)
                done = _Done(
                    method=scope["method"],
                    route=route,
                    status=exchange.status,
                    began_s=exchange.answered_at - started,
                    elapsed_s=elapsed_s,
                    is_patient=b"prefer" in headers,
                    shown_id=shown_id,
                    trace_id=trace_id_of(current),
                )
                # The answer leaves at the end of the loop's turn, and this comes after it: in calm hours its code has
                # left the processor's caches, and was 0.2 ms of the slowest twentieth of reads.
                asyncio.get_running_loop().call_soon(self._account, done)

    def _account(self, done: "_Done") -> None:
        named = f"{done.route} wait" if done.is_patient else done.route
        key = (named, done.method, done.status)
        timer = self._timers.get(key)
        if timer is None:  # looked up once: finding a metric by its labels costs more than counting in it
            timer = self._timers[key] = REQUESTS.labels(self._service, named, done.method, str(done.status))
        timer.observe(done.began_s)
        self._traffic.record(route=done.route, status=done.status, elapsed_s=done.began_s, is_patient=done.is_patient)
        log_request(
            method=done.method,
            route=done.route,
            status=done.status,
            duration_ms=round(done.elapsed_s * 1000, 2),
            request_id=done.shown_id,
            trace_id=done.trace_id,
        )

    async def _run(self, scope: Scope, receive: Receive, exchange: "_Exchange", headers: Mapping[bytes, bytes]) -> None:
        try:
            if scope["state"]["has_body"]:
                self._check_length(headers.get(b"content-length", b"0"))
                receive = _bounded(receive, self._max_body_bytes)
            await self._app(scope, receive, exchange.send)
        except Exception as error:
            # The framework has answered already where it could; what is left is to log, or to answer in its place.
            if not isinstance(error, VentureError):
                log.exception("request_failed")
            if not exchange.started:
                answer = problem(error if isinstance(error, VentureError) else VentureError("Unexpected error."))
                await answer(scope, receive, exchange.send)

    def _check_length(self, length: bytes) -> None:
        if not length.isdigit() or int(length) > self._max_body_bytes:
            raise TooLarge(f"The body is larger than {self._max_body_bytes} bytes.")


class _Done(NamedTuple):
    """An answered request, as metrics and the log know it. `began_s`: until its answer began."""

    method: str
    route: str
    status: int
    began_s: float
    elapsed_s: float
    is_patient: bool
    shown_id: str
    trace_id: str | None


def has_header(scope: Scope, name: bytes) -> bool:
    for each, _ in scope.get("headers", ()):  # noqa: SIM110 - twice as fast as any(), and every request comes here
        if each == name:
            return True
    return False


def add_headers(scope: Scope, headers: Iterable[tuple[bytes, bytes]]) -> None:
    """Give this request's answer these headers, whoever will make it, without one more layer of `send`."""
    scope.setdefault("state", {}).setdefault(_ANSWER_HEADERS, []).extend(headers)


def _request_id(headers: Mapping[bytes, bytes]) -> tuple[str, str]:
    """The client's or one of ours, and the same as the log may show it: only a foreign one can hold a secret."""
    given = headers.get(b"x-request-id")
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode(), redact_text(given.decode())
    ours = new_id_text()
    return ours, ours


class _Exchange:
    """Remembers the status, and adds the headers every answer has."""

    __slots__ = ("_answered_at", "_more_headers", "_send", "started", "status")

    def __init__(self, send: Send, more_headers: Sequence[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._more_headers = more_headers
        self.status = 500
        self.started = False
        self._answered_at: float | None = None

    @property
    def answered_at(self) -> float:
        """When the answer began: a stream may go on for hours after that."""
        return self._answered_at or time.perf_counter()

    async def send(self, message: Message) -> None:
        if message["type"] != "http.response.body":
            self.started = True
            self._answered_at = time.perf_counter()
            self.status = message["status"]
            headers = [*message["headers"], *self._more_headers]
            present = {name for name, _ in headers}  # in lower case, as ASGI has them
            headers += [pair for pair in _DEFAULT_HEADERS if pair[0] not in present]
            message["headers"] = headers
        await self._send(message)


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """Count a body that came without an honest Content-Length; refuse it as soon as it is too long."""
    seen = 0

    async def bounded_receive() -> Message:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > max_bytes:
                raise TooLarge(f"The body is larger than {max_bytes} bytes.")
        return message

    return bounded_receive


class ServiceAuth:
    """Pure ASGI: everything below `/internal/` needs a service token made for us, whatever a route forgets to ask."""

    def __init__(self, app: ASGIApp, *, secret: str, audience: str) -> None:
        self._app = app
        self._tokens = service_tokens.Verifier(secret, audience=audience)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/internal"):
            try:
                scope.setdefault("state", {})["caller"] = self._authenticate(scope["headers"])
            except ServiceTokenRefused as error:
                await problem(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _authenticate(self, headers: Sequence[tuple[bytes, bytes]]) -> Caller:
        values = [value for name, value in headers if name == b"authorization"]
        if len(values) != 1 or not values[0].startswith(b"Bearer "):
            raise ServiceTokenRefused("A service token is needed here.")
        token = values[0].removeprefix(b"Bearer ").decode("latin-1")
        return self._tokens.verify(token)


async def _current_caller(request: Request) -> Caller:  # async: a plain function would cost a thread hop
    caller = getattr(request.state, "caller", None)
    if not isinstance(caller, Caller):
        raise ServiceTokenRefused("A service token is needed here.")
    return caller


CurrentCaller = Annotated[Caller, Depends(_current_caller)]
