"""HTTP of the reference: the page, what it needs, and the AsyncAPI document."""

from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Response

from services.gateway.reference.asyncapi import document

_FOLDER: Final = Path(__file__).parent
_HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
_FILES: Final = {
    "/docs": ("reference.html", "text/html"),
    "/docs/reference.js": ("reference.js", "text/javascript"),
    "/docs/reference.css": ("reference.css", "text/css"),
}


class ReferenceRoutes:
    def __init__(self, *, version: str) -> None:
        self._version = version
        self._answers = {
            path: ((_FOLDER / name).read_text(encoding="utf-8"), kind) for path, (name, kind) in _FILES.items()
        }

    def router(self) -> APIRouter:
        router = APIRouter(include_in_schema=False)
        for path, (content, kind) in self._answers.items():
            router.add_api_route(path, _file(content, kind), methods=["GET"])
        router.add_api_route("/asyncapi.json", self.asyncapi, methods=["GET"])
        return router

    async def asyncapi(self) -> dict[str, Any]:
        return document(version=self._version)


def _file(content: str, kind: str) -> Any:
    async def answer() -> Response:
        return Response(content, headers=_HEADERS, media_type=f"{kind}; charset=utf-8")

    return answer
