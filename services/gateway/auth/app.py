"""The application at /auth/v1: its own errors, the API key every call carries, and the routes of all its nouns."""

import re
from collections.abc import Sequence
from typing import Final, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from starlette.routing import Mount
from starlette.types import ASGIApp

from libs.common.http import create_app
from services.gateway.auth.domain import AuthError
from services.gateway.auth.errors import install_error_handlers
from services.gateway.auth.tokens import ApiKeys

# A click in a mail, a redirect and a verifier of tokens carry no key.
_OPEN_PATHS: Final = frozenset({"/.well-known/jwks.json", "/authorize"})


class Routes(Protocol):
    def router(self) -> APIRouter: ...


def build_app(keys: ApiKeys, routes: Sequence[Routes], *, version: str) -> FastAPI:
    async def require_api_key(request: Request) -> None:
        path = request.scope["route"].path
        if path in _OPEN_PATHS or (path == "/verify" and request.method == "GET"):
            return
        key = request.headers.get("apikey")
        if not key:
            raise AuthError(401, "no_authorization", "No API key found in request")
        if keys.role_of(key) is None:
            raise AuthError(401, "no_authorization", "Invalid API key")

    app = create_app(title="Sign-in", version=version)
    install_error_handlers(app)
    for each in routes:
        app.include_router(each.router(), dependencies=[Depends(require_api_key)])
    return app


def mounted(app: ASGIApp) -> Mount:
    """Whoever signs people in, at its address."""
    mount = Mount("/auth/v1", app=app)
    # A line break in a path is part of it, too: what begins so is answered in sign-in's shape.
    mount.path_regex = re.compile(mount.path_regex.pattern, re.DOTALL)
    return mount
