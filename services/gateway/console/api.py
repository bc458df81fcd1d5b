"""The application at /console: all its pages behind one door, its refusals as pages, and the turning towards it."""

from collections.abc import Sequence
from typing import Final, Protocol
from urllib.parse import quote

from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common.errors import VentureError
from libs.common.http import create_app
from services.gateway.console.door import CodeFirst, Door, SignInFirst
from services.gateway.console.render import View, to
from services.gateway.sse import run_detached

_TITLES: Final = {
    401: "Sign in first",
    403: "Not from here",
    404: "There is nothing here",
    409: "Not like this",
    422: "This cannot be done",
    429: "Too fast",
    503: "Not available right now",
}


class Routes(Protocol):
    def router(self) -> APIRouter: ...


class Console:
    """Pure ASGI: paths below /console go to the console, all others to the rest of the gateway.

    It stands beside the gate, not behind it: whoever ends maintenance must get in while the house is closed.
    """

    def __init__(self, app: ASGIApp, *, console: ASGIApp) -> None:
        self._app = app
        self._console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        is_ours = scope["type"] == "http" and (path == "/console" or path.startswith("/console/"))
        if not is_ours:
            await self._app(scope, receive, send)
            return
        await self._console(scope, receive, send)
        await run_detached(scope, receive, send)


def build_console(*, view: View, door: Door, entry: Routes, pages: Sequence[Routes], version: str) -> FastAPI:
    app = create_app(title="Console", version=version)
    app.include_router(entry.router())
    for each in pages:
        app.include_router(each.router(), dependencies=[Depends(door.guard)])
    _install_error_pages(app, view)
    return app


def _install_error_pages(app: FastAPI, view: View) -> None:
    def refuse(request: Request, status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
        title = _TITLES.get(status, "Something went wrong")
        response = view.page("refusal.html", request, status=status, title=title, detail=detail)
        response.headers.update(headers or {})
        return response

    async def on_venture_error(request: Request, error: Exception) -> Response:
        if not isinstance(error, VentureError):
            raise error
        headers = {"Retry-After": str(error.retry_after_s)} if error.retry_after_s is not None else {}
        return refuse(request, error.status, error.detail, headers)

    async def on_invalid(request: Request, _error: Exception) -> Response:
        # An id that is none names nothing.
        return refuse(request, 404, "There is nothing here.")

    async def on_http_exception(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return refuse(request, status, "There is nothing here.")

    async def on_sign_in_first(request: Request, _error: Exception) -> Response:
        return _to_sign_in(request)

    async def on_code_first(_request: Request, _error: Exception) -> Response:
        return to("/console/code")

    async def on_unexpected(request: Request, _error: Exception) -> Response:
        return refuse(request, 500, "Something went wrong on our side; the log has it under this request's id.")

    app.add_exception_handler(Exception, on_unexpected)
    app.add_exception_handler(VentureError, on_venture_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http_exception)
    app.add_exception_handler(SignInFirst, on_sign_in_first)
    app.add_exception_handler(CodeFirst, on_code_first)


def _to_sign_in(request: Request) -> Response:
    path = "/console/sign-in"
    if request.method == "GET" and request.url.path != "/console":
        path += f"?next={quote(request.url.path)}"
    if "hx-request" in request.headers:  # a part of a page cannot be the way in
        return Response(status_code=204, headers={"HX-Redirect": path})
    return to(path)
