"""HTTP in for operators, alike in every service: its queues, and what is parked behind them.

Only a service acting for itself gets in: the gateway has decided by then that an admin asks, and keeps the audit log.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Annotated, Any, Final

import orjson
from fastapi import APIRouter, Query
from pydantic import Field

from libs.common.broker import BrokerUnavailable, ParkedMessage, ParkedMessages, QueueView, open_parked
from libs.common.errors import Forbidden, NotFound
from libs.common.http import CurrentCaller
from libs.common.inputs import Input
from libs.common.service_tokens import Caller
from libs.common.telemetry import redact

Name = Annotated[str, Field(min_length=1, max_length=200)]
MAX_BODY: Final = 64 * 1024
TIMEOUT_S: Final = 3.5
"""Below the 4 s for which the gateway waits."""


class ForServices(Forbidden):
    code = "internal.for_services"


class NoSuchQueue(NotFound):
    code = "internal.no_such_queue"


class ParkedInput(Input):
    queue: Name
    message_id: Name | None = None


class DiscardInput(Input):
    queue: Name
    message_id: Name


class OwnParked:
    """A service's own queues, over a connection for each act: operators are few, and nobody keeps holding messages."""

    def __init__(self, url: str, *, queues: Sequence[str]) -> None:
        self._url = url
        self._queues = queues
        self._one_at_a_time = asyncio.Lock()  # what one act holds, another would not see

    async def queues(self) -> list[QueueView]:
        async with self._opened() as parked:
            return await parked.queues()

    async def look(self, queue: str) -> list[ParkedMessage]:
        """What is parked behind a queue; it stays there. Raises NoSuchQueue."""
        async with self._opened(queue) as parked:
            return await parked.messages(queue=queue)

    async def replay(self, queue: str, *, message_id: str | None) -> list[ParkedMessage]:
        """Send one message back to its queue, or all of them (None). Raises NoSuchQueue."""
        async with self._opened(queue) as parked:
            return await parked.replay(message_id, queue=queue)

    async def discard(self, queue: str, *, message_id: str) -> list[ParkedMessage]:
        async with self._opened(queue) as parked:
            return await parked.discard(message_id, queue=queue)

    @asynccontextmanager
    async def _opened(self, queue: str | None = None) -> AsyncGenerator[ParkedMessages, None]:
        if queue is not None and queue not in self._queues:
            raise NoSuchQueue("This service has no such queue.")
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(TIMEOUT_S), open_parked(self._url, queues=self._queues) as parked:
                    yield parked
            except TimeoutError:
                # Cut anywhere, a message is parked, queued or for a moment both; asking again finishes the rest.
                raise BrokerUnavailable("The broker does not answer in time.", retry_after_s=2) from None


class ParkedRoutes:
    def __init__(self, parked: OwnParked) -> None:
        self._parked = parked

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/admin", tags=["operators"], include_in_schema=False)
        router.add_api_route("/queues", self.list_queues, methods=["GET"])
        router.add_api_route("/parked", self.list_parked, methods=["GET"])
        router.add_api_route("/parked/replay", self.replay, methods=["POST"])
        router.add_api_route("/parked/discard", self.discard, methods=["POST"])
        return router

    async def list_queues(self, caller: CurrentCaller) -> dict[str, Any]:
        _admit(caller)
        return {"items": [asdict(view) for view in await self._parked.queues()]}

    async def list_parked(self, caller: CurrentCaller, queue: Annotated[str, Query(max_length=200)]) -> dict[str, Any]:
        _admit(caller)
        return {"items": [render(message) for message in await self._parked.look(queue)]}

    async def replay(self, caller: CurrentCaller, body: ParkedInput) -> dict[str, Any]:
        """Again is harmless: a message that is not parked any more is not sent again."""
        _admit(caller)
        sent = await self._parked.replay(body.queue, message_id=body.message_id)
        return {"items": [render(message) for message in sent]}

    async def discard(self, caller: CurrentCaller, body: DiscardInput) -> dict[str, Any]:
        """The answer is the last that is seen of them."""
        _admit(caller)
        gone = await self._parked.discard(body.queue, message_id=body.message_id)
        return {"items": [render(message) for message in gone]}


def _admit(caller: Caller) -> None:
    if caller.user_id is not None:
        raise ForServices("This is for services.")


def render(message: ParkedMessage) -> dict[str, Any]:
    """For people: what looks like a secret is masked, and a body that is no JSON is shown as text."""
    try:
        body: Any = orjson.loads(message.body)
    except orjson.JSONDecodeError:
        body = message.body[:MAX_BODY].decode("utf-8", "replace")
    return {**asdict(message), "body": redact(body)}
