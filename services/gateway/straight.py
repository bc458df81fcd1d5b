"""Reads that are passed on as they are go straight from the gate to the service, past routing and dependencies.

Pure ASGI. Which routes these are, and what the API's document says of them, is `passthrough.PASSED`'s to say: what
needs anything besides a signed-in user, and every request with a body, takes the way through the routes.
"""

from collections.abc import Mapping
from urllib.parse import parse_qsl

from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common.errors import VentureError
from libs.common.http import problem
from services.gateway.domain import Identity
from services.gateway.passthrough import PASSED
from services.gateway.upstreams import Name, Upstream, pass_back

_BODY: frozenset[bytes] = frozenset({b"content-length", b"transfer-encoding"})


class Straight:
    """A third of the processor time of the same request through the routes: 0.2 ms less of 0.6 ms."""

    def __init__(self, app: ASGIApp, *, upstreams: Mapping[Name, Upstream]) -> None:
        self._app = app
        self._passed = {
            passed.path: (passed, upstreams[passed.to])
            for passed in PASSED
            if passed.method == "GET" and not passed.is_guarded and not passed.uses and "{" not in passed.path
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._passed.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "GET" else None
        identity = scope.get("state", {}).get("identity")
        if (
            found is None
            or not isinstance(identity, Identity)
            or not _BODY.isdisjoint(name for name, _ in scope["headers"])
        ):
            await self._app(scope, receive, send)
            return
        passed, upstream = found
        scope["route"] = passed  # what metrics and the log call the request by
        query: bytes = scope["query_string"]
        params = parse_qsl(query.decode("latin-1"), keep_blank_values=True) if query else None
        try:
            response = pass_back(await upstream.call("GET", passed.internal, identity=identity, params=params))
        except VentureError as error:
            response = problem(error)
        await response(scope, receive, send)
