"""Which pages of other origins may call us, what they may send, and what their scripts may read."""

from collections.abc import Sequence
from typing import Final

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common.http import add_headers, has_header
from libs.common.http_server import WHOLE

_VARY: Final = ((b"vary", b"Origin"),)


def with_cors(app: ASGIApp, *, origins: Sequence[str]) -> ASGIApp:
    """Outside the gate, so that refusals carry the headers, too: a browser shows a script no error without them."""
    return _Cors(
        app,
        allow_origins=[*origins],
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=[
            "accept",
            "apikey",
            "authorization",
            "content-type",
            "idempotency-key",
            "last-event-id",
            "prefer",
            "traceparent",
            "x-client-info",
            "x-request-id",
            "x-supabase-api-version",
        ],
        expose_headers=[
            "Link",
            "Location",
            "RateLimit",
            "RateLimit-Policy",
            "Retry-After",
            "X-Request-ID",
            "X-Supabase-Api-Version",
            "X-Total-Count",
        ],
        max_age=600,
    )


class _Cors(CORSMiddleware):
    """Starlette's, with a short way for those who name no origin: they are told that the answer varies, and no more."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if has_header(scope, b"origin"):
            scope.get("extensions", {}).pop(WHOLE, None)  # it writes into the first of two messages
            await super().__call__(scope, receive, send)
            return
        if scope["type"] == "http":
            add_headers(scope, _VARY)
        await self.app(scope, receive, send)
