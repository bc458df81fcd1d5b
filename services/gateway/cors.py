"""Which pages of other origins may call us, what they may send, and what their scripts may read."""

from collections.abc import Sequence

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp


def with_cors(app: ASGIApp, *, origins: Sequence[str]) -> ASGIApp:
    """Outside the gate, so that refusals carry the headers, too: a browser shows a script no error without them."""
    return CORSMiddleware(
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
