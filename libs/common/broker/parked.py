"""Parked messages as operators handle them: look at all, send one back to where it came from, or discard it.

Nothing is ever in two places for longer than a confirm: a message is published back first and acked after. Cut off
between the two it is handled twice, which the inbox turns into once.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity

from libs.common.broker import topology
from libs.common.broker.publisher import BrokerUnavailable
from libs.common.events import CATALOGUE, CONTENT_TYPE

CONNECT_TIMEOUT_S: Final = 5
MOST_LOOKED_AT: Final = 1000
_OF_PARKING: Final = frozenset({"x-attempt", "x-last-error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueView:
    """A queue as the broker counts it: what waits, what is parked behind it, and who consumes."""

    name: str
    waiting: int
    parked: int
    consumers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedMessage:
    id: str
    queue: str
    """Where it came from, and where it goes back to."""
    reason: str
    error: str
    attempts: int
    body: bytes


class ParkedMessages:
    """Over one connection, as the broker's operator or as the service whose queues they are."""

    def __init__(self, connection: AbstractConnection, *, names: Sequence[str]) -> None:
        self._connection = connection
        self._names = names

    async def queues(self, *, queue: str | None = None) -> list[QueueView]:
        """Every queue that its consumer has ever declared, or the one that is named."""
        views: list[QueueView] = []
        channel = await self._connection.channel()
        for name in self._names if queue is None else (queue,):
            try:
                source = await channel.declare_queue(name, passive=True)
                parked = await channel.declare_queue(topology.parked_queue(name), passive=True)
            except ChannelNotFoundEntity:
                channel = await self._connection.channel()  # the broker closes the one that asked
                continue
            views.append(
                QueueView(
                    name=name,
                    waiting=source.declaration_result.message_count or 0,
                    parked=parked.declaration_result.message_count or 0,
                    consumers=source.declaration_result.consumer_count or 0,
                )
            )
        await channel.close()
        return views

    async def messages(self, *, queue: str | None = None) -> list[ParkedMessage]:
        """All parked messages, or those of one queue, oldest first in each; they stay where they are."""
        found: list[ParkedMessage] = []
        for view in await self.queues(queue=queue):
            if view.parked:
                async with self._taken(view.name) as messages:
                    found += [_read(view.name, message) for message in messages]
        return found

    async def replay(self, message_id: str | None, *, queue: str | None = None) -> list[ParkedMessage]:
        """Send back the one with this id, or all (None); return those sent. Sending again finds nothing."""
        return await self._end(message_id, queue, is_replay=True)

    async def discard(self, message_id: str, *, queue: str | None = None) -> list[ParkedMessage]:
        return await self._end(message_id, queue, is_replay=False)

    async def park_again(self, messages: Sequence[ParkedMessage]) -> list[str]:
        """Park those that are not parked now, as after the loss of the broker's disk; return their ids."""
        there = {message.id for message in await self.messages()}
        missing = [message for message in messages if message.id not in there]
        for message in missing:
            headers = {
                "x-parked-reason": message.reason,
                "x-parked-error": message.error,
                "x-parked-from": message.queue,
                "x-parked-attempts": message.attempts,
            }
            await self._publish(topology.parked_queue(message.queue), message.id, message.body, headers)
        return [message.id for message in missing]

    async def _end(self, message_id: str | None, queue: str | None, *, is_replay: bool) -> list[ParkedMessage]:
        ended: list[ParkedMessage] = []
        for view in await self.queues(queue=queue):
            if not view.parked:
                continue
            async with self._taken(view.name) as messages:
                for message in messages:
                    if message_id is not None and message.message_id != message_id:
                        continue
                    if is_replay:
                        await self._send_back(view.name, message)
                    await message.ack()
                    ended.append(_read(view.name, message))
        return ended

    async def _send_back(self, queue: str, message: AbstractIncomingMessage) -> None:
        headers = {name: value for name, value in message.headers.items() if not _is_of_parking(name)}
        await self._publish(queue, message.message_id, message.body, headers)

    async def _publish(self, queue: str, message_id: str | None, body: bytes, headers: dict[str, Any]) -> None:
        channel = await self._connection.channel(publisher_confirms=True, on_return_raises=True)
        sent = aio_pika.Message(
            body,
            message_id=message_id,
            content_type=CONTENT_TYPE,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=headers,
        )
        await channel.default_exchange.publish(sent, routing_key=queue, mandatory=True, timeout=CONNECT_TIMEOUT_S)
        await channel.close()

    @asynccontextmanager
    async def _taken(self, queue: str) -> AsyncGenerator[list[AbstractIncomingMessage], None]:
        """The messages parked behind a queue, ours until the block ends; those not acked by then are there again."""
        channel: AbstractChannel = await self._connection.channel()
        source = await channel.get_queue(topology.parked_queue(queue), ensure=False)
        messages: list[AbstractIncomingMessage] = []
        while len(messages) < MOST_LOOKED_AT and (message := await source.get(fail=False)) is not None:
            messages.append(message)
        try:
            yield messages
        finally:
            await channel.close()


def _is_of_parking(header: str) -> bool:
    return header in _OF_PARKING or header.startswith(
        ("x-parked", "x-death", "x-first-death", "x-last-death", "x-delivery")
    )


def _read(queue: str, message: AbstractIncomingMessage) -> ParkedMessage:
    headers: dict[str, Any] = dict(message.headers)
    attempts = headers.get("x-parked-attempts", 1)
    return ParkedMessage(
        id=message.message_id or "",
        queue=queue,
        reason=str(headers.get("x-parked-reason", "delivery_limit")),
        error=str(headers.get("x-parked-error", "the broker gave it up after too many deliveries")),
        attempts=attempts if isinstance(attempts, int) else 1,
        body=message.body,
    )


@asynccontextmanager
async def open_parked(
    url: str, *, consumers: Sequence[str] = (), queues: Sequence[str] = ()
) -> AsyncGenerator[ParkedMessages, None]:
    """For all queues that consumers may have, or for the queues named. Raises BrokerUnavailable."""
    names = [*queues, *(topology.queue_name(consumer, event) for consumer in consumers for event in CATALOGUE)]
    try:
        connection = await aio_pika.connect(
            url, timeout=CONNECT_TIMEOUT_S, client_properties={"connection_name": "operator"}
        )
        async with connection:
            yield ParkedMessages(connection, names=names)
    except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
        raise BrokerUnavailable(f"{type(error).__name__} while handling parked messages") from error
