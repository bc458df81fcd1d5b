"""Publishing that does not lie: returns only when the broker has confirmed the message and a queue has it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, PublishError
from aiormq import Channel

from libs.common.broker import topology
from libs.common.broker.burst import Burst, Outgoing
from libs.common.broker.message import MOST_EVENTS, batches_of, pack
from libs.common.errors import Unavailable
from libs.common.events import CONTENT_TYPE, EncodedEvent

log = structlog.get_logger(__name__)

CONFIRM_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 3.0


class BrokerUnavailable(Unavailable):
    code = "broker_unavailable"


class Unroutable(BrokerUnavailable):
    """No queue takes this routing key. A confirm alone would not have told: unroutable messages are confirmed, too."""

    code = "broker_unroutable"


class BrokerPublisher:
    """One publishing connection, opened on first use and opened again after any failure."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        confirm_timeout_s: float = CONFIRM_TIMEOUT_S,
        events_per_message: int = MOST_EVENTS,
    ) -> None:
        self._url = url
        self._name = name
        self._confirm_timeout_s = confirm_timeout_s
        self._events_per_message = events_per_message
        self._lock = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: Channel | None = None

    async def publish_events(self, events: Sequence[EncodedEvent]) -> Sequence[BrokerUnavailable | None]:
        """Send events to whoever has subscribed to their types; say of each what kept it from a queue, if anything.

        Those of one type go together, some in a message, and share the broker's word on it.
        """
        batches = batches_of(events, most=self._events_per_message)
        words = await self.publish_all([_to_subscribers([events[place] for place in batch]) for batch in batches])
        said: list[BrokerUnavailable | None] = [None] * len(events)
        for batch, word in zip(batches, words, strict=True):
            for place in batch:
                said[place] = word
        return said

    async def publish_all(self, messages: Sequence[Outgoing]) -> Sequence[BrokerUnavailable | None]:
        """Send persistent messages in one write; say of each, in their order, what kept it from a queue, if anything.

        None is said only of what the broker has confirmed and a queue has; all else is still the caller's. Raises
        ValueError, and sends nothing, if AMQP has no room for an id or a key.

        An alarm or a stopped broker blocks a publish without any error, so the confirm has a timeout of its own; the
        connection is then dropped, because what it has still buffered would arrive late and out of our sight.
        """
        if not messages:
            return ()
        try:
            burst = Burst(await self._open_channel(), messages)
            ended_by = await burst.send(timeout_s=self._confirm_timeout_s)
        except BrokerUnavailable as error:
            return [error] * len(messages)
        except TimeoutError:
            await self._drop()
            return [BrokerUnavailable(f"not written within {self._confirm_timeout_s:g} s")] * len(messages)
        except CONNECTION_EXCEPTIONS as error:
            return [BrokerUnavailable(f"{type(error).__name__} while publishing")] * len(messages)
        missing = BrokerUnavailable(
            f"{type(ended_by).__name__} while publishing"
            if ended_by is not None
            else f"no confirm within {self._confirm_timeout_s:g} s"
        )
        if burst.unanswered and ended_by is None:
            await self._drop()
        return [
            missing if place in burst.unanswered else _meaning(burst.errors.get(place), message)
            for place, message in enumerate(messages)
        ]

    async def publish_event(self, *, routing_key: str, body: bytes, message_id: str, traceparent: str | None) -> None:
        """Send one event. Raises as `publish` does."""
        await self._publish(_to_subscribers([EncodedEvent(message_id, routing_key, body, traceparent)]))

    async def publish(
        self, *, exchange: str, routing_key: str, body: bytes, message_id: str | None, headers: dict[str, Any]
    ) -> None:
        """Send one persistent message. Raises BrokerUnavailable or Unroutable: the caller still owns the message."""
        await self._publish(
            Outgoing(exchange=exchange, routing_key=routing_key, body=body, message_id=message_id, headers=headers)
        )

    async def _publish(self, message: Outgoing) -> None:
        (error,) = await self.publish_all([message])
        if error is not None:
            raise error

    async def _open_channel(self) -> Channel:
        channel = self._usable()
        if channel is not None:
            return channel
        async with self._lock:
            return self._usable() or await self._connect()

    def _usable(self) -> Channel | None:
        """A closed channel is known here before anybody is told of it."""
        if self._channel is None or self._channel.is_closed or self._connection is None or self._connection.is_closed:
            return None
        return self._channel

    async def _connect(self) -> Channel:
        await self._discard_connection()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await aio_pika.connect(
                    self._url, client_properties={"connection_name": f"{self._name} publish"}
                )
                self._connection = connection
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                await topology.find_events_exchange(channel)
                underlay = cast("Channel", await channel.get_underlay_channel())  # its interface has no lock
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
            raise BrokerUnavailable(f"{type(error).__name__} while connecting") from error
        # A closed channel on a living connection would refuse every publish: let go of both together.
        channel.close_callbacks.add(self._forget)
        self._channel = underlay
        return underlay

    def _forget(self, *_closed: Any) -> None:
        self._channel = None

    async def _drop(self) -> None:
        async with self._lock:
            await self._discard_connection()

    async def _discard_connection(self) -> None:
        connection, self._connection, self._channel = self._connection, None, None
        if connection is not None and not connection.is_closed:
            # The closing handshake needs a peer that answers; without one the transport is dropped by the timeout.
            with suppress(TimeoutError, *CONNECTION_EXCEPTIONS):
                async with asyncio.timeout(1.0):
                    await connection.close()

    async def close(self) -> None:
        await self._drop()


def _to_subscribers(events: Sequence[EncodedEvent]) -> Outgoing:
    """One event, or several of one type, which carry their traces in their envelopes."""
    first = events[0]
    if len(events) == 1:
        body, content_type, traceparent = first.body, CONTENT_TYPE, first.traceparent
    else:
        body, content_type, traceparent = *pack(events), None
    return Outgoing(
        exchange=topology.EVENTS_EXCHANGE,
        routing_key=first.type,
        body=body,
        message_id=first.id,
        headers={"traceparent": traceparent} if traceparent else {},
        content_type=content_type,
    )


def _meaning(error: BaseException | None, message: Outgoing) -> BrokerUnavailable | None:
    if isinstance(error, PublishError):
        return Unroutable(f"no queue takes {message.routing_key!r} from exchange {message.exchange!r}")
    return None if error is None else BrokerUnavailable(f"{type(error).__name__} while publishing")


@asynccontextmanager
async def open_publisher(
    url: str, *, name: str, events_per_message: int = MOST_EVENTS
) -> AsyncGenerator[BrokerPublisher, None]:
    publisher = BrokerPublisher(url, name=name, events_per_message=events_per_message)
    try:
        yield publisher
    finally:
        await publisher.close()
