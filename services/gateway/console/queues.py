"""Queues and what is parked behind them: why it failed, again, or never again."""

from typing import Any, Literal, cast

from fastapi import APIRouter, Request, Response

from libs.common.broker import ParkedMessages
from libs.common.database import Database
from libs.common.errors import NotFound
from libs.common.parked_api import render
from services.gateway import sse
from services.gateway.console import operations
from services.gateway.console.door import Door, Entered, Form
from services.gateway.console.house import House, Name
from services.gateway.console.live import LiveParts
from services.gateway.console.render import View, to
from services.gateway.console.state import Board

Act = Literal["replay", "discard"]
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
        door: Door,
        live: LiveParts,
    ) -> None:
        self._database = database
        self._board = board
        self._house = house
        self._parked = parked
        self._view = view
        self._door = door
        self._live = live

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/queues", self.page, methods=["GET"])
        router.add_api_route("/live/queues", self.follow, methods=["GET"], response_model=None)
        router.add_api_route("/queues/{queue}", self.messages, methods=["GET"])
        router.add_api_route("/queues/{queue}/{act}", self.settle, methods=["POST"])
        return router

    async def page(self, request: Request) -> Response:
        return self._view.page("queues.html", request, queues=await self._board.queues())

    async def follow(self, request: Request) -> Response:
        async def draw() -> tuple[str, bool]:
            return self._view.fragment("_queues.html", queues=await self._board.queues()), False

        return sse.stream(self._live.frames(draw, is_still_in=lambda: self._door.is_still_in(request)))

    async def messages(self, request: Request, queue: str) -> Response:
        state = next((item for item in (await self._board.queues()).items if item["queue"] == queue), None)
        if state is None:
            raise NotFound("There is no such queue.")
        items = sorted(await self._look(queue), key=_told_at)
        return self._view.page("parked.html", request, queue=queue, state=state, items=items)

    async def settle(self, request: Request, me: Entered, form: Form, queue: str, act: Act) -> Response:
        """Twice is once: a message that is not parked any more is not touched again."""
        message_id = form.get("message_id") or None
        count = await self._settle(queue, act, message_id)
        async with self._database.transaction() as conn:
            await operations.note(
                conn,
                actor=me.user_id,
                action="parked_replayed" if act == "replay" else "parked_discarded",
                subject=queue,
                after={"message_id": message_id, "messages": count},
                request_id=request.state.request_id,
            )
        self._board.forget()
        return to(f"/console/queues/{queue}", "replayed" if act == "replay" else "discarded", n=count)

    async def _look(self, queue: str) -> list[dict[str, Any]]:
        service = _service_of(queue)
        if service is None:
            return [render(message) for message in await self._parked.look(queue)]
        return (await self._house.ask(service, "GET", "/internal/admin/parked", params={"queue": queue}))["items"]

    async def _settle(self, queue: str, act: Act, message_id: str | None) -> int:
        service = _service_of(queue)
        if service is None:
            settle = self._parked.replay if act == "replay" else self._parked.discard
            return await settle(queue, message_id=message_id)
        body = {"queue": queue} if message_id is None else {"queue": queue, "message_id": message_id}
        return (await self._house.ask(service, "POST", f"/internal/admin/parked/{act}", body=body))["messages"]


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
