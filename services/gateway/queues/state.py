"""Queues are asked of whose they are, the gateway's own of the broker; an act is audited before it is done."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any
from uuid import UUID

from libs.common.broker import BrokerUnavailable, ParkedMessages
from libs.common.database import Database
from libs.common.errors import NotFound
from libs.common.parked_api import render
from services.gateway.admin.queries import insert_audit
from services.gateway.house import House, Name, ServiceRefused
from services.gateway.upstreams import UpstreamUnavailable


@dataclass(frozen=True, slots=True, kw_only=True)
class QueuesView:
    """`silent`: services that did not answer, whose queues are therefore not listed."""

    items: Sequence[Mapping[str, Any]]
    silent: Sequence[str]

    def sum_of(self, name: str) -> int:
        return sum(item[name] for item in self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """Who asks for what is parked behind a queue to be moved, and in which request."""

    actor: UUID
    queue: str
    request_id: str


class QueueDesk:
    def __init__(self, *, database: Database, house: House, parked: ParkedMessages, own_queues: Sequence[str]) -> None:
        self._database = database
        self._house = house
        self._parked = parked
        self._own_queues = own_queues

    async def states(self) -> QueuesView:
        """What the broker says of each queue right now."""
        names = ("gateway", *self._house.services)
        answers = await asyncio.gather(self._own_states(), *map(self._states_of, self._house.services))
        return QueuesView(
            items=[item for answer in answers for item in answer or ()],
            silent=[name for name, answer in zip(names, answers, strict=True) if answer is None],
        )

    async def look(self, queue: str) -> list[dict[str, Any]]:
        """What is parked behind the queue, the oldest first. Raises NotFound."""
        service = self._owner(queue)
        if service is None:
            return [render(message) for message in await self._parked.look(queue)]
        return (await self._house.ask(service, "GET", "/internal/admin/parked", params={"queue": queue}))["items"]

    async def replay(self, act: Act, message_id: str | None) -> int:
        """Send one message, or all, back to where they failed. Twice is once: what is not parked is not sent again."""
        service = self._owner(act.queue)
        await self._note(act, "parked_replayed", {"message_id": message_id or "all"})
        if service is None:
            return await self._parked.replay(act.queue, message_id=message_id)
        return await self._ask(service, "replay", act.queue, message_id)

    async def discard(self, act: Act, message_id: str) -> int:
        """Give one message up for good, but for the audit log, which keeps what it was."""
        service = self._owner(act.queue)
        message = next((item for item in await self.look(act.queue) if item["message_id"] == message_id), None)
        if message is None:
            return 0
        await self._note(act, "parked_discarded", message)
        if service is None:
            return await self._parked.discard(act.queue, message_id=message_id)
        return await self._ask(service, "discard", act.queue, message_id)

    async def _ask(self, service: Name, what: str, queue: str, message_id: str | None) -> int:
        body = {"queue": queue} if message_id is None else {"queue": queue, "message_id": message_id}
        return (await self._house.ask(service, "POST", f"/internal/admin/parked/{what}", body=body))["messages"]

    def _owner(self, queue: str) -> Name | None:
        """None for the gateway's own. Raises NotFound; whether another service has it is that service's to say."""
        if queue in self._own_queues:
            return None
        for service in self._house.services:
            if queue.startswith(f"{service}."):
                return service
        raise NotFound("There is no such queue.")

    async def _own_states(self) -> list[Mapping[str, Any]] | None:
        try:
            states = await self._parked.states(self._own_queues)
        except BrokerUnavailable:
            return None
        return [{"queue": queue, **asdict(state)} for queue, state in states.items()]

    async def _states_of(self, service: Name) -> list[Mapping[str, Any]] | None:
        try:
            return (await self._house.ask(service, "GET", "/internal/admin/queues"))["items"]
        except (UpstreamUnavailable, ServiceRefused):
            return None

    async def _note(self, act: Act, action: str, after: dict[str, Any]) -> None:
        """Before the act: a broker that falls silent in the middle leaves no act without its line."""
        async with self._database.transaction() as conn:
            await insert_audit(
                conn, actor=str(act.actor), action=action, subject=act.queue, after=after, request_id=act.request_id
            )
