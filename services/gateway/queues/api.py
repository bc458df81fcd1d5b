"""HTTP of admins: the queues of all services, and what is parked behind them."""

from typing import Annotated, Any

from fastapi import APIRouter, Path, Request
from pydantic import Field

from libs.common.inputs import Input
from services.gateway.queues.state import Act, QueueDesk
from services.gateway.sessions import CurrentAdmin

Queue = Annotated[str, Path(pattern=r"^[a-z_]+(\.[a-z0-9_]+){1,5}$", max_length=200)]
MessageId = Annotated[str, Field(min_length=1, max_length=200)]


class ReplayInput(Input):
    """Without a message id: all that is parked there."""

    message_id: MessageId | None = None


class DiscardInput(Input):
    message_id: MessageId


class QueueRoutes:
    def __init__(self, desk: QueueDesk) -> None:
        self._desk = desk

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/admin/queues", tags=["admin"])
        router.add_api_route("", self.list_queues, methods=["GET"])
        router.add_api_route("/{queue}/parked", self.list_parked, methods=["GET"])
        router.add_api_route("/{queue}/replay", self.replay, methods=["POST"])
        router.add_api_route("/{queue}/discard", self.discard, methods=["POST"])
        return router

    async def list_queues(self, _admin: CurrentAdmin) -> dict[str, Any]:
        """Every queue with its consumers and what waits in it; `silent` are services that did not answer."""
        view = await self._desk.states()
        return {"items": view.items, "silent": view.silent, "next_cursor": None}

    async def list_parked(self, queue: Queue, _admin: CurrentAdmin) -> dict[str, Any]:
        """The oldest hundred messages that failed for good, with why; secrets in them are masked."""
        return {"items": await self._desk.look(queue), "next_cursor": None}

    async def replay(
        self, queue: Queue, request: Request, admin: CurrentAdmin, body: ReplayInput | None = None
    ) -> dict[str, int]:
        """Send one message, or all, back to the queue it failed in; again is harmless."""
        act = Act(actor=admin.user_id, queue=queue, request_id=request.state.request_id)
        return {"messages": await self._desk.replay(act, body.message_id if body is not None else None)}

    async def discard(self, queue: Queue, body: DiscardInput, request: Request, admin: CurrentAdmin) -> dict[str, int]:
        """Give one message up for good. The audit log keeps what it was."""
        act = Act(actor=admin.user_id, queue=queue, request_id=request.state.request_id)
        return {"messages": await self._desk.discard(act, body.message_id)}
