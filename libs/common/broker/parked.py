"""Parked messages in an operator's hands: looked at without being taken, sent back to where they failed, or given up.

A replay returns the message to its queue as if it had just come, confirmed before the parked copy is acked: killed in
between, it is parked *and* queued, and the inbox makes the second time harmless. Looking costs a message a delivery,
and newer brokers drop what was delivered twenty times; one that was looked at often is therefore parked afresh.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, ChannelNotFoundEntity

from libs.common.broker import topology
from libs.common.broker.consumer import QueueState
from libs.common.broker.publisher import BrokerPublisher, BrokerUnavailable

MAX_HELD: Final = 1000
"""So many messages of one queue are looked through at most; the oldest come first."""
RENEW_AT: Final = topology.DELIVERY_LIMIT // 2
TIMEOUT_S: Final = 4.0
_OF_THE_FAILURE: Final = ("x-parked-", "x-attempt", "x-last-error", "x-death", "x-first-death-", "x-last-death-")
_OF_THE_BROKER: Final = ("x-delivery-count", "x-acquired-count")


@dataclass(frozen=True, slots=True, kw_only=True)
class ParkedMessage:
    """`queue` is where it failed. A message that came without an id goes by a hash of its body."""

    queue: str
    message_id: str
    reason: str
    error: str
    attempts: int
    body: bytes
    headers: Mapping[str, Any]


class ParkedMessages:
    """Over a connection of its own for each act: operators are few, and nobody is left holding messages."""

    def __init__(self, url: str, *, publisher: BrokerPublisher, name: str) -> None:
        self._url = url
        self._publisher = publisher
        self._name = name
        self._one_at_a_time = asyncio.Lock()  # what one act holds, another would not see

    async def states(self, queues: Iterable[str]) -> dict[str, QueueState]:
        """What the broker says of each queue right now; a queue that was never declared is left out."""
        states: dict[str, QueueState] = {}
        async with self._connected() as connection:
            for name in queues:
                # A channel each: asking for a queue that is not there closes it.
                async with connection.channel(publisher_confirms=False) as channel:
                    try:
                        queue = (await channel.declare_queue(name, passive=True)).declaration_result
                        behind = (
                            await channel.declare_queue(topology.parked_queue(name), passive=True)
                        ).declaration_result
                    except ChannelNotFoundEntity:
                        continue
                states[name] = QueueState(
                    consumers=queue.consumer_count or 0,
                    waiting=queue.message_count or 0,
                    parked=behind.message_count or 0,
                )
        return states

    async def look(self, queue: str, *, limit: int = 100) -> list[ParkedMessage]:
        """The oldest parked messages of a queue, left where they are."""
        async with self._held(queue, limit=limit) as messages:
            for message in messages:
                await self._put_back(queue, message)
            return [_read(queue, message) for message in messages]

    async def replay(self, queue: str, *, message_id: str | None = None) -> int:
        """Send one message, or all, back to the queue it failed in; return how many that were."""
        return await self._settle(queue, message_id, replay=True)

    async def discard(self, queue: str, *, message_id: str | None = None) -> int:
        """Give one message, or all, up for good; return how many that were."""
        return await self._settle(queue, message_id, replay=False)

    async def _settle(self, queue: str, message_id: str | None, *, replay: bool) -> int:
        count = 0
        async with self._held(queue, limit=MAX_HELD) as messages:
            for message in messages:
                if message_id is not None and identify(message) != message_id:
                    await self._put_back(queue, message)
                    continue
                if replay:
                    await self._publish(queue, message, without=(*_OF_THE_FAILURE, *_OF_THE_BROKER))
                await message.ack()
                count += 1
        return count

    async def _put_back(self, queue: str, message: AbstractIncomingMessage) -> None:
        deliveries = message.headers.get("x-delivery-count", 0)
        if not isinstance(deliveries, int) or deliveries < RENEW_AT:
            await message.nack(requeue=True)
            return
        await self._publish(topology.parked_queue(queue), message, without=_OF_THE_BROKER)
        await message.ack()

    async def _publish(self, queue: str, message: AbstractIncomingMessage, *, without: tuple[str, ...]) -> None:
        await self._publisher.publish(
            exchange=topology.home_exchange(queue.partition(".")[0]),  # its consumer's: the only one it may use
            routing_key=queue,
            body=message.body,
            message_id=message.message_id,
            headers={name: value for name, value in message.headers.items() if not name.startswith(without)},
        )

    @asynccontextmanager
    async def _held(self, queue: str, *, limit: int) -> AsyncGenerator[list[AbstractIncomingMessage], None]:
        """Messages held unacked while the body runs; what it does not settle returns when the connection closes."""
        async with self._one_at_a_time, self._connected() as connection:
            channel = await connection.channel(publisher_confirms=False)
            yield await _take(channel, topology.parked_queue(queue), limit=limit)

    @asynccontextmanager
    async def _connected(self) -> AsyncGenerator[aio_pika.abc.AbstractConnection, None]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                connection = await aio_pika.connect(
                    self._url, client_properties={"connection_name": f"{self._name} parked"}
                )
                async with connection:
                    yield connection
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
            raise BrokerUnavailable("The broker does not answer.", retry_after_s=2) from error


async def _take(channel: AbstractChannel, name: str, *, limit: int) -> list[AbstractIncomingMessage]:
    try:
        source = await channel.declare_queue(name, passive=True)
    except ChannelNotFoundEntity:
        return []
    messages: list[AbstractIncomingMessage] = []
    while len(messages) < limit and (message := await source.get(fail=False)) is not None:
        messages.append(message)
    return messages


def identify(message: AbstractIncomingMessage) -> str:
    return message.message_id or f"body-{hashlib.sha256(message.body).hexdigest()[:32]}"


def _read(queue: str, message: AbstractIncomingMessage) -> ParkedMessage:
    """The broker itself parks what was delivered too often, and says so in other headers than ours."""
    headers = message.headers
    attempts = headers.get("x-parked-attempts", 0)
    return ParkedMessage(
        queue=queue,
        message_id=identify(message),
        reason=str(headers.get("x-parked-reason") or headers.get("x-last-death-reason") or "delivery_limit"),
        error=str(headers.get("x-parked-error") or headers.get("x-last-error") or ""),
        attempts=attempts if isinstance(attempts, int) else 0,
        body=message.body,
        headers={name: str(value) for name, value in headers.items()},
    )
