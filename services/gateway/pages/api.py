"""HTTP of the playground: one page, its scripts and style sheets, read once at start."""

import html
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response

_FOLDER: Final = Path(__file__).parent
# Everything comes from here, nothing runs inline, and nobody may frame the page.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_FILES: Final = {
    "playground.js": "text/javascript; charset=utf-8",
    "markdown.js": "text/javascript; charset=utf-8",
    "playground.css": "text/css; charset=utf-8",
    "theme.css": "text/css; charset=utf-8",
}
"""Beside the page, with their media types. The console takes its colours from the same theme."""


class PageRoutes:
    def __init__(self, *, anon_key: str) -> None:
        page = _read("playground.html")
        self._page = page.replace("{{anon_key}}", html.escape(anon_key, quote=True))
        self._files = {name: _read(name) for name in _FILES}

    def router(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/", self.page, methods=["GET"])
        # Where refusals over a limit send people, when no frontend of the product's own is configured.
        router.add_api_route("/pricing", self.page, methods=["GET"])
        for name in _FILES:
            router.add_api_route(f"/{name}", self.file, methods=["GET"])
        return router

    async def page(self) -> Response:
        return Response(self._page, headers=_HEADERS, media_type="text/html; charset=utf-8")

    async def file(self, request: Request) -> Response:
        name = request.url.path.removeprefix("/")
        return Response(self._files[name], headers=_HEADERS, media_type=_FILES[name])


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")
