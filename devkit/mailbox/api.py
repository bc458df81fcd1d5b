"""HTTP out: Mailpit's JSON API (mailpit.axllent.org/docs/api-v1) and a small inbox page."""

import os
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import orjson
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from devkit.mailbox.reading import Json, bodies, headers, matches, parsed, whole
from devkit.mailbox.smtp import Chaos, Trigger
from devkit.mailbox.store import Heading, Letters

PER_PAGE = 50
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data: https:; frame-src 'self'",
    "Referrer-Policy": "no-referrer",
}


def answer(body: object, status: int = 200) -> Response:
    return Response(orjson.dumps(body), status, media_type="application/json")


class Api:
    """Serves the letters of one mailbox."""

    def __init__(self, letters: Letters, chaos: Chaos) -> None:
        self._letters = letters
        self._chaos = chaos
        self._templates = Environment(
            loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined
        )

    async def messages(self, request: Request) -> Response:
        found = self._letters.headings()
        return self._page(request, found)

    async def search(self, request: Request) -> Response:
        query = request.query_params.get("query", "")
        if not query:
            return answer({"Error": "no search query"}, 400)
        return self._page(request, [letter for letter in self._letters.headings() if matches(letter, query)])

    def _page(self, request: Request, found: Sequence[Heading]) -> Response:
        everything = self._letters.headings()
        try:
            start = int(request.query_params.get("start", "0"))
            limit = int(request.query_params.get("limit", str(PER_PAGE)))
        except ValueError:
            return answer({"Error": "start and limit are numbers"}, 400)
        shown = [heading.line for heading in found[start : start + limit]]
        return answer(
            {
                "total": len(everything),
                "unread": sum(not letter.is_read for letter in everything),
                "count": len(shown),
                "messages_count": len(found),
                "messages_unread": sum(not letter.is_read for letter in found),
                "start": start,
                "tags": [],
                "messages": shown,
            }
        )

    async def message(self, request: Request) -> Response:
        """One letter whole; reading it marks it as read."""
        letter = self._letters.find(request.path_params["id"])
        if letter is None:
            return answer({"Error": "message not found"}, 404)
        self._letters.mark([letter.id], is_read=True)
        return answer(whole(letter))

    async def raw(self, request: Request) -> Response:
        letter = self._letters.find(request.path_params["id"])
        return PlainTextResponse("message not found", 404) if letter is None else PlainTextResponse(letter.raw)

    async def headers(self, request: Request) -> Response:
        letter = self._letters.find(request.path_params["id"])
        return answer({"Error": "message not found"}, 404) if letter is None else answer(headers(letter))

    async def delete(self, request: Request) -> Response:
        """Delete the letters named by `IDs`, or all of them."""
        wanted = cast("list[str]", (await _body(request)).get("IDs") or [])
        if wanted:
            self._letters.remove(wanted)
        else:
            self._letters.clear()
        return PlainTextResponse("ok")

    async def delete_found(self, request: Request) -> Response:
        query = request.query_params.get("query", "")
        if not query:
            return answer({"Error": "no search query"}, 400)
        self._letters.remove([letter.id for letter in self._letters.headings() if matches(letter, query)])
        return PlainTextResponse("ok")

    async def mark(self, request: Request) -> Response:
        body = await _body(request)
        wanted = cast("list[str]", body.get("IDs") or [letter.id for letter in self._letters.headings()])
        self._letters.mark(wanted, is_read=bool(body.get("Read")))
        return PlainTextResponse("ok")

    async def info(self, _request: Request) -> Response:
        everything = self._letters.headings()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return answer(
            {
                "Version": "devkit",
                "LatestVersion": "devkit",
                "Database": str(self._letters.path),
                "DatabaseSize": self._letters.path.stat().st_size,
                "Messages": len(everything),
                "Unread": sum(not letter.is_read for letter in everything),
                "Tags": {},
                "RuntimeStats": {"Memory": memory, "PID": os.getpid()},
            }
        )

    async def chaos(self, request: Request) -> Response:
        """Read (GET) or set (PUT) how often SMTP refuses: `{"Recipient": {"ErrorCode": 451, "Probability": 100}}`."""
        if request.method == "PUT":
            body = await _body(request)
            for name in ("Sender", "Recipient"):
                given = cast("Json", body.get(name) or {})
                code, share = int(given.get("ErrorCode", 451)), int(given.get("Probability", 0))
                setattr(self._chaos, name, Trigger(ErrorCode=code, Probability=share))
        return answer(self._chaos.as_json())

    async def ready(self, _request: Request) -> Response:
        return PlainTextResponse("ok")

    async def inbox(self, _request: Request) -> Response:
        lines = [heading.line for heading in self._letters.headings()[:200]]
        text = self._templates.get_template("inbox.html").render(lines=lines)
        return HTMLResponse(text, headers=PAGE_HEADERS)

    async def view(self, request: Request) -> Response:
        letter = self._letters.find(request.path_params["id"])
        if letter is None:
            return PlainTextResponse("message not found", 404)
        self._letters.mark([letter.id], is_read=True)
        text = self._templates.get_template("letter.html").render(letter=whole(letter))
        return HTMLResponse(text, headers=PAGE_HEADERS)

    async def view_html(self, request: Request) -> Response:
        """The HTML of a letter alone, without scripts."""
        letter = self._letters.find(request.path_params["id"])
        if letter is None:
            return PlainTextResponse("message not found", 404)
        policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data: https:; sandbox allow-popups"
        return HTMLResponse(bodies(parsed(letter))[1], headers=PAGE_HEADERS | {"Content-Security-Policy": policy})


async def _body(request: Request) -> Json:
    raw = await request.body()
    return cast("Json", orjson.loads(raw)) if raw else {}


def routes(letters: Letters, chaos: Chaos) -> list[Route]:
    api = Api(letters, chaos)
    return [
        Route("/", api.inbox),
        Route("/livez", api.ready),
        Route("/readyz", api.ready),
        Route("/view/{id}.html", api.view_html),
        Route("/view/{id}", api.view),
        Route("/api/v1/info", api.info),
        Route("/api/v1/messages", api.messages, methods=["GET"]),
        Route("/api/v1/messages", api.delete, methods=["DELETE"]),
        Route("/api/v1/messages", api.mark, methods=["PUT"]),
        Route("/api/v1/search", api.search, methods=["GET"]),
        Route("/api/v1/search", api.delete_found, methods=["DELETE"]),
        Route("/api/v1/chaos", api.chaos, methods=["GET", "PUT"]),
        Route("/api/v1/message/{id}", api.message),
        Route("/api/v1/message/{id}/raw", api.raw),
        Route("/api/v1/message/{id}/headers", api.headers),
    ]
