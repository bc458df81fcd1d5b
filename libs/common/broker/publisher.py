"""Publishing that does not lie: returns only when the broker has confirmed the message and a queue has it."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, cast

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS, PublishError
from aiormq import Channel, spec

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
        self._channel: Channel | None = None

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
        properties = spec.Basic.Properties(
            content_type=CONTENT_TYPE,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            message_id=message_id,
            headers=headers,
        )
        channel = await self._open_channel()
        try:
            # Straight to the channel, waiting for the confirm alone and not for the write: publishes of a batch would
            # take turns, a round of the loop each. An event costs a sixth less processor time from row to effect.
            await channel.basic_publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                properties=properties,
                mandatory=True,
                timeout=self._confirm_timeout_s,
                wait=False,
            )
        except PublishError:
            raise Unroutable(f"no queue takes {routing_key!r} from exchange {exchange!r}") from None
        except TimeoutError as error:
            await self._drop()
            raise BrokerUnavailable(f"no confirm within {self._confirm_timeout_s:g} s") from error
        except CONNECTION_EXCEPTIONS as error:
            raise BrokerUnavailable(f"{type(error).__name__} while publishing") from error

    async def _open_channel(self) -> Channel:
        channel = self._channel
        if channel is not None and self._connection is not None and not self._connection.is_closed:
            return channel
        async with self._lock:
            if self._channel is None or self._connection is None or self._connection.is_closed:
                return await self._connect()
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
                underlay = cast("Channel", await channel.get_underlay_channel())  # its interface knows no `wait`
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


@asynccontextmanager
async def open_publisher(url: str, *, name: str) -> AsyncGenerator[BrokerPublisher, None]:
    publisher = BrokerPublisher(url, name=name)
    try:
        yield publisher
    finally:
        await publisher.close()
