"""Queues and what is parked behind them: why it failed, again, or never again."""

from typing import Any, cast

from fastapi import APIRouter, Request, Response

from libs.common.broker import ParkedMessages
from libs.common.database import Database
from libs.common.errors import NotFound
from libs.common.parked_api import render
from services.gateway.console import operations
from services.gateway.console.door import Entered, Form
from services.gateway.console.house import House, Name
from services.gateway.console.live import LiveParts
from services.gateway.console.render import View, to
from services.gateway.console.state import Board

_OTHERS: dict[str, Name] = {"billing": "billing", "metering": "metering", "agents": "agents"}


class QueueRoutes:
    def __init__(
        self,
        *,
        database: Database,
        board: Board,
        house: House,
        parked: ParkedMessages,
        view: View,
        live: LiveParts,
    ) -> None:
        self._database = database
        self._board = board
        self._house = house
        self._parked = parked
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
        items = sorted(await self._look(queue), key=_told_at)
        return self._view.page("parked.html", request, queue=queue, state=state, items=items)

    async def replay(self, request: Request, me: Entered, form: Form, queue: str) -> Response:
        """Twice is once: a message that is not parked any more is not sent again."""
        message_id = form.get("message_id") or None
        await self._note(request, me, "parked_replayed", queue, {"message_id": message_id or "all"})
        body = {"queue": queue} if message_id is None else {"queue": queue, "message_id": message_id}
        service = _service_of(queue)
        if service is None:
            count = await self._parked.replay(queue, message_id=message_id)
        else:
            count = (await self._house.ask(service, "POST", "/internal/admin/parked/replay", body=body))["messages"]
        self._board.forget()
        return to(f"/console/queues/{queue}", "replayed", n=count)

    async def discard(self, request: Request, me: Entered, form: Form, queue: str) -> Response:
        """Gone for good, but for the audit log, which keeps what it was."""
        message_id = form.get("message_id", "")
        message = next((item for item in await self._look(queue) if item["message_id"] == message_id), None)
        if message is None:
            return to(f"/console/queues/{queue}", "discarded", n=0)
        await self._note(request, me, "parked_discarded", queue, message)
        service = _service_of(queue)
        if service is None:
            count = await self._parked.discard(queue, message_id=message_id)
        else:
            body = {"queue": queue, "message_id": message_id}
            count = (await self._house.ask(service, "POST", "/internal/admin/parked/discard", body=body))["messages"]
        self._board.forget()
        return to(f"/console/queues/{queue}", "discarded", n=count)

    async def _look(self, queue: str) -> list[dict[str, Any]]:
        service = _service_of(queue)
        if service is None:
            return [render(message) for message in await self._parked.look(queue)]
        return (await self._house.ask(service, "GET", "/internal/admin/parked", params={"queue": queue}))["items"]

    async def _note(self, request: Request, me: Entered, action: str, queue: str, after: dict[str, Any]) -> None:
        """Before the act: a broker that falls silent in the middle leaves no act without its line."""
        async with self._database.transaction() as conn:
            await operations.note(
                conn,
                actor=me.user_id,
                action=action,
                subject=queue,
                after=after,
                request_id=request.state.request_id,
            )


def _service_of(queue: str) -> Name | None:
    """None for the gateway's own."""
    owner = queue.partition(".")[0]
    if owner == "gateway":
        return None
    if owner not in _OTHERS:
        raise NotFound("There is no such queue.")
    return _OTHERS[owner]


def _told_at(item: dict[str, Any]) -> str:
    body: Any = item["body"]
    return str(cast("dict[str, Any]", body).get("time", "")) if isinstance(body, dict) else ""
