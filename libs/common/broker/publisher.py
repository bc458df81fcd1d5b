"""Publishing that does not lie: returns only when the broker has confirmed the message and a queue has it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, PublishError

from libs.common.broker import topology
from libs.common.errors import Unavailable
from libs.common.events import CONTENT_TYPE

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

    def __init__(self, url: str, *, name: str, confirm_timeout_s: float = CONFIRM_TIMEOUT_S) -> None:
        self._url = url
        self._name = name
        self._confirm_timeout_s = confirm_timeout_s
        self._lock = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._exchanges: dict[str, AbstractExchange] = {}

    async def publish_event(self, *, routing_key: str, body: bytes, message_id: str, traceparent: str | None) -> None:
        headers = {"traceparent": traceparent} if traceparent else {}
        await self.publish(
            exchange=topology.EVENTS_EXCHANGE,
            routing_key=routing_key,
            body=body,
            message_id=message_id,
            headers=headers,
        )

    async def publish(
        self, *, exchange: str, routing_key: str, body: bytes, message_id: str | None, headers: dict[str, Any]
    ) -> None:
        """Send one persistent message. Raises BrokerUnavailable or Unroutable; the caller still owns the message then.

        An alarm or a stopped broker blocks a publish without any error, so the confirm has a timeout of its own; the
        connection is then dropped, because what it has still buffered would arrive late and out of our sight.
        """
        message = aio_pika.Message(
            body,
            message_id=message_id,
            content_type=CONTENT_TYPE,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            headers=headers,
        )
        target = await self._exchange(exchange)
        try:
            async with asyncio.timeout(self._confirm_timeout_s):
                await target.publish(message, routing_key=routing_key, mandatory=True)
        except PublishError:
            raise Unroutable(f"no queue takes {routing_key!r} from exchange {exchange!r}") from None
        except TimeoutError as error:
            await self._drop()
            raise BrokerUnavailable(f"no confirm within {self._confirm_timeout_s:g} s") from error
        except CONNECTION_EXCEPTIONS as error:
            raise BrokerUnavailable(f"{type(error).__name__} while publishing") from error

    async def _exchange(self, name: str) -> AbstractExchange:
        async with self._lock:
            channel = self._channel
            if channel is None or self._connection is None or self._connection.is_closed:
                channel = await self._connect()
            if name not in self._exchanges:
                self._exchanges[name] = await channel.get_exchange(name, ensure=False)
            return self._exchanges[name]

    async def _connect(self) -> AbstractChannel:
        await self._discard_connection()
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                connection = await aio_pika.connect(
                    self._url, client_properties={"connection_name": f"{self._name} publish"}
                )
                self._connection = connection
                channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
                await topology.find_events_exchange(channel)
        except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
            raise BrokerUnavailable(f"{type(error).__name__} while connecting") from error
        # A closed channel on a living connection would refuse every publish: let go of both together.
        channel.close_callbacks.add(self._forget)
        self._channel = channel
        return channel

    def _forget(self, *_closed: Any) -> None:
        self._channel, self._exchanges = None, {}

    async def _drop(self) -> None:
        async with self._lock:
            await self._discard_connection()

    async def _discard_connection(self) -> None:
        connection, self._connection, self._channel, self._exchanges = self._connection, None, None, {}
        if connection is not None and not connection.is_closed:
            # The closing handshake needs a peer that answers; without one the transport is dropped by the timeout.
            with suppress(TimeoutError, *CONNECTION_EXCEPTIONS):
                async with asyncio.timeout(1.0):
                    await connection.close()

    async def close(self) -> None:
        await self._drop()


@asynccontextmanager
async def open_publisher(url: str, *, name: str) -> AsyncGenerator[BrokerPublisher, None]:
    publisher = BrokerPublisher(url, name=name)
    try:
        yield publisher
    finally:
        await publisher.close()
