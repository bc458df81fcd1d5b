"""The relay at /auth/v1: each request as it came to the project, each answer as it comes back."""

from collections.abc import AsyncGenerator
from typing import Final
from urllib.parse import unquote

import httpx
from fastapi import Request, Response
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from libs.common.httpx_failures import HTTPX_FAILURES
from services.gateway.auth.domain import AuthError
from services.gateway.auth.errors import render
from services.gateway.project.state import Project

# What the contract's clients send; cookies, hosts and identity headers stay here.
_SENT_ON: Final = (
    "accept",
    "accept-language",
    "apikey",
    "authorization",
    "content-type",
    "referer",
    "user-agent",
    "x-client-info",
    "x-supabase-api-version",
)
# Not the project's CORS headers: who may call this house is this house's to say.
_PASSED_BACK: Final = frozenset(
    {
        "cache-control",
        "content-encoding",
        "content-type",
        "link",
        "location",
        "retry-after",
        "sb-auth-session-id",
        "sb-auth-user-id",
        "x-sb-error-code",
        "x-supabase-api-version",
        "x-total-count",
    }
)


class Relay:
    """An ASGI application, mounted. Answers are streamed; redirects are the client's to follow."""

    def __init__(self, project: Project) -> None:
        self._project = project

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._relay(request)
        await response(scope, receive, send)

    async def _relay(self, request: Request) -> Response:
        path = str(request.scope["path"])
        if ".." in unquote(path).split("/") or not path.isprintable():
            return _refuse(request, AuthError(404, "validation_failed", "There is nothing here."))
        headers = {name: request.headers[name] for name in _SENT_ON if name in request.headers}
        if request.client is not None:  # the project limits by address, too: one it believes if it counts us as a hop
            headers["x-forwarded-for"] = request.client.host
        # The path is encoded anew: what a client left unencoded cannot become a query or another host.
        url = httpx.URL(self._project.client.base_url, path=path, query=request.scope["query_string"])
        sent = self._project.client.build_request(
            request.method, url, headers=headers, content=await request.body() or None
        )
        try:
            answer = await self._project.client.send(sent, stream=True)
        except HTTPX_FAILURES:
            error = AuthError(503, "unexpected_failure", "The sign-in service does not answer, please try again")
            return _refuse(request, error)
        kept = {name: value for name, value in answer.headers.items() if name in _PASSED_BACK}
        return StreamingResponse(_bytes_of(answer), answer.status_code, kept)


async def _bytes_of(answer: httpx.Response) -> AsyncGenerator[bytes, None]:
    try:
        async for part in answer.aiter_raw():
            yield part
    finally:
        await answer.aclose()


def _refuse(request: Request, error: AuthError) -> Response:
    response = render(error, api_version=request.headers.get("x-supabase-api-version"))
    if error.status == 503:  # noqa: PLR2004
        response.headers["Retry-After"] = "2"
    return response
