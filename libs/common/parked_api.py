"""HTTP in for operators, alike in every service: its queues, and what is parked behind them.

Only a service acting for itself gets in: the gateway has decided by then that an admin asks, and keeps the audit log.
"""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query
from pydantic import Field

from libs.common.broker import ParkedMessage, ParkedMessages
from libs.common.errors import Forbidden, NotFound
from libs.common.http import CurrentCaller
from libs.common.inputs import Input
from libs.common.redaction import redact
from libs.common.service_tokens import Caller

Name = Annotated[str, Field(min_length=1, max_length=200)]
MAX_BODY: Final = 64 * 1024


class ForServices(Forbidden):
    code = "internal.for_services"


class NoSuchQueue(NotFound):
    code = "internal.no_such_queue"


class ParkedInput(Input):
    """Without a message id: all that is parked there."""

    queue: Name
    message_id: Name | None = None


class ParkedRoutes:
    def __init__(self, parked: ParkedMessages, queues: Sequence[str]) -> None:
        self._parked = parked
        self._queues = queues

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/admin", tags=["operators"], include_in_schema=False)
        router.add_api_route("/queues", self.list_queues, methods=["GET"])
        router.add_api_route("/parked", self.list_parked, methods=["GET"])
        router.add_api_route("/parked/replay", self.replay, methods=["POST"])
        router.add_api_route("/parked/discard", self.discard, methods=["POST"])
        return router

    async def list_queues(self, caller: CurrentCaller) -> dict[str, Any]:
        _admit(caller)
        states = await self._parked.states(self._queues)
        return {"items": [{"queue": name, **asdict(state)} for name, state in states.items()]}

    async def list_parked(
        self,
        caller: CurrentCaller,
        queue: Annotated[str, Query(max_length=200)],
        limit: Annotated[int, Query(ge=1, le=200)] = 100,
    ) -> dict[str, Any]:
        _admit(caller)
        messages = await self._parked.look(self._known(queue), limit=limit)
        return {"items": [render(message) for message in messages]}

    async def replay(self, caller: CurrentCaller, body: ParkedInput) -> dict[str, int]:
        """Again is harmless: a message that is not parked any more is not sent again."""
        _admit(caller)
        return {"messages": await self._parked.replay(self._known(body.queue), message_id=body.message_id)}

    async def discard(self, caller: CurrentCaller, body: ParkedInput) -> dict[str, int]:
        _admit(caller)
        return {"messages": await self._parked.discard(self._known(body.queue), message_id=body.message_id)}

    def _known(self, queue: str) -> str:
        if queue not in self._queues:
            raise NoSuchQueue("This service has no such queue.")
        return queue


def _admit(caller: Caller) -> None:
    if caller.user_id is not None:
        raise ForServices("This is for services.")


def render(message: ParkedMessage) -> dict[str, Any]:
    """For people: what looks like a secret is masked, and a body that is no JSON is shown as text."""
    try:
        body: Any = orjson.loads(message.body)
    except orjson.JSONDecodeError:
        body = message.body[:MAX_BODY].decode("utf-8", "replace")
    return {
        "queue": message.queue,
        "message_id": message.message_id,
        "reason": message.reason,
        "error": message.error,
        "attempts": message.attempts,
        "body": redact(body),
        "headers": redact(message.headers),
    }
