"""HTTP of the playground: one page, its scripts, one style sheet, read once at start."""

import html
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response

_FOLDER: Final = Path(__file__).parent
# Everything comes from here, nothing runs inline, and nobody may frame the page.
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}


class PageRoutes:
    def __init__(self, *, anon_key: str) -> None:
        page = (_FOLDER / "playground.html").read_text(encoding="utf-8")
        self._page = page.replace("{{anon_key}}", html.escape(anon_key, quote=True))
        self._script = (_FOLDER / "playground.js").read_text(encoding="utf-8")
        self._markdown = (_FOLDER / "markdown.js").read_text(encoding="utf-8")
        self._style = (_FOLDER / "playground.css").read_text(encoding="utf-8")

    def router(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        router.add_api_route("/", self.page, methods=["GET"])
        # Where refusals over a limit send people, when no frontend of the product's own is configured.
        router.add_api_route("/pricing", self.page, methods=["GET"])
        router.add_api_route("/playground.js", self.script, methods=["GET"])
        router.add_api_route("/markdown.js", self.markdown, methods=["GET"])
        router.add_api_route("/playground.css", self.style, methods=["GET"])
        return router

    async def page(self) -> Response:
        return Response(self._page, headers=_HEADERS, media_type="text/html; charset=utf-8")

    async def script(self) -> Response:
        return Response(self._script, headers=_HEADERS, media_type="text/javascript; charset=utf-8")

    async def markdown(self) -> Response:
        return Response(self._markdown, headers=_HEADERS, media_type="text/javascript; charset=utf-8")

    async def style(self) -> Response:
        return Response(self._style, headers=_HEADERS, media_type="text/css; charset=utf-8")
