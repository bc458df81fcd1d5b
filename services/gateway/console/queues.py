"""Queues and what is parked behind them: why it failed, again, or never again."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final, cast

from fastapi import APIRouter, Request, Response

from libs.common.errors import NotFound
from services.gateway.console.door import Entered, Form
from services.gateway.console.live import LiveParts
from services.gateway.console.render import View, to
from services.gateway.console.state import Board
from services.gateway.queues.state import Act, QueueDesk

_LAST: Final = datetime.max.replace(tzinfo=UTC)


class QueueRoutes:
    def __init__(self, *, board: Board, desk: QueueDesk, view: View, live: LiveParts) -> None:
        self._board = board
        self._desk = desk
        self._view = view
        self._live = live

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/console")
        router.add_api_route("/queues", self.page, methods=["GET"])
        router.add_api_route("/live/queues", self.follow, methods=["GET"], response_model=None)
        router.add_api_route("/queues/{queue}", self.messages, methods=["GET"])
        router.add_api_route("/queues/{queue}/replay", self.replay, methods=["POST"])
        router.add_api_route("/queues/{queue}/discard", self.discard, methods=["POST"])
        return router

    async def page(self, request: Request) -> Response:
        return self._view.page("queues.html", request, queues=await self._board.queues())

    async def follow(self, request: Request) -> Response:
        async def draw() -> tuple[str, bool]:
            return self._view.fragment("_queues.html", queues=await self._board.queues()), False

        return self._live.follow(request, draw)

    async def messages(self, request: Request, queue: str) -> Response:
        state = next((item for item in (await self._board.queues()).items if item["queue"] == queue), None)
        if state is None:
            raise NotFound("There is no such queue.")
        found = [{**item, "told_at": _told_at(item)} for item in await self._desk.look(queue)]
        items = sorted(found, key=lambda item: item["told_at"] or _LAST)
        return self._view.page("parked.html", request, queue=queue, state=state, items=items)

    async def replay(self, request: Request, me: Entered, form: Form, queue: str) -> Response:
        act = Act(actor=me.user_id, queue=queue, request_id=request.state.request_id)
        count = await self._desk.replay(act, form.get("message_id") or None)
        self._board.forget()
        return to(f"/console/queues/{queue}", "replayed", n=count)

    async def discard(self, request: Request, me: Entered, form: Form, queue: str) -> Response:
        act = Act(actor=me.user_id, queue=queue, request_id=request.state.request_id)
        count = await self._desk.discard(act, form.get("message_id", ""))
        self._board.forget()
        return to(f"/console/queues/{queue}", "discarded", n=count)


def _told_at(item: Mapping[str, Any]) -> datetime | None:
    """When the event says that it happened. What was parked for being no event says nothing of it, or anything."""
    body: Any = item["body"]
    told = str(cast("dict[str, Any]", body).get("time", "")) if isinstance(body, dict) else ""
    try:
        at = datetime.fromisoformat(told)
    except ValueError:
        return None
    return at if at.tzinfo is not None else None
