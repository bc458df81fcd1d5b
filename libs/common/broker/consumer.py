"""The runner behind every subscription, written once: parse, trace, transaction, inbox, handler, commit, ack last.

Nothing is acked because it failed. What may succeed later goes up the retry ladder, what cannot is parked with its
reason, and while the database is away messages wait where they are instead of burning deliveries.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aio_pika
import structlog
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from opentelemetry.trace import SpanKind

from libs.common import inbox
from libs.common.broker import topology
from libs.common.broker.publisher import BrokerPublisher, BrokerUnavailable
from libs.common.database import Connection, Database, DatabaseUnavailable
from libs.common.errors import LimitExceeded, Unavailable, VentureError
from libs.common.events import CATALOGUE, Envelope, Event, MalformedEvent
from libs.common.telemetry import MESSAGES, span

log = structlog.get_logger(__name__)

ATTEMPT_HEADER: Final = "x-attempt"
MAX_UNEXPECTED_ATTEMPTS: Final = len(topology.RETRY_DELAYS_S) + 1
"""An error without a meaning is tried once per rung of the ladder, then parked: about six minutes in all."""
PREFETCH: Final = 16
RECONNECT_MAX_S: Final = 2.0
PRESENCE_INTERVAL_S: Final = 5.0

Handler = Callable[[Any, Connection], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One event this service consumes. `wake` runs after the handler's commit, to rouse a loop of this process."""

    event: type[Event]
    handler: Handler
    prefetch: int = PREFETCH
    wake: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """What the broker said of one queue: how many consumers it has, how many messages wait, how many are parked."""

    consumers: int
    waiting: int
    parked: int


class ConsumerLost(Exception):
    """The broker took a consumer away, or never had it; the connection is rebuilt."""


class Consumer:
    """All subscriptions of one process over one consuming connection, rebuilt whole whenever any part of it fails.

    A rebuilt connection instead of a self-healing one, because those do not restore a consumer the server cancelled.
    """

    def __init__(
        self,
        url: str,
        *,
        service: str,
        subscriptions: Sequence[Subscription],
        database: Database,
        publisher: BrokerPublisher,
    ) -> None:
        self._url = url
        self._service = service
        self._subscriptions = subscriptions
        self._database = database
        self._publisher = publisher
        self._in_flight: set[asyncio.Task[None]] = set()
        self._states: dict[str, QueueState] = {}
        self._seen_at = 0.0
        self.is_running = False

    @property
    def queues(self) -> list[str]:
        return [topology.queue_name(self._service, s.event.type) for s in self._subscriptions]

    def states(self) -> Mapping[str, QueueState]:
        """The broker's last word on each queue, at most 15 s old; empty when it has not answered for longer."""
        return self._states if time.monotonic() - self._seen_at < PRESENCE_INTERVAL_S * 3 else {}

    async def run(self) -> None:
        """Consume for ever; reconnect with back-off up to 2 s. On cancellation, messages in hand are finished first."""
        delay_s = 0.1
        self.is_running = True
        while True:
            started = time.monotonic()
            try:
                await self._consume_until_lost()
            except (ConsumerLost, TimeoutError, *CONNECTION_EXCEPTIONS) as error:
                log.warning("broker_connection_lost", error=f"{type(error).__name__}: {error}"[:200])
            if time.monotonic() - started > RECONNECT_MAX_S:
                delay_s = 0.1
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RECONNECT_MAX_S)

    async def _consume_until_lost(self) -> None:
        async with asyncio.timeout(10):
            connection = await aio_pika.connect(
                self._url, client_properties={"connection_name": f"{self._service} consume"}
            )
        try:
            channel, tags = await self._subscribe(connection)
            lost = asyncio.ensure_future(channel.closed())
            cancelled: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            underlay = await channel.get_underlay_channel()
            underlay.on_consumer_cancel_callbacks.add(lambda frame: _resolve(cancelled, frame))
            watch = asyncio.ensure_future(self._watch_presence(connection))
            try:
                done, _ = await asyncio.wait({lost, cancelled, watch}, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    future.result()
                raise ConsumerLost("the broker closed the channel or cancelled a consumer")
            except asyncio.CancelledError:
                await self._drain(channel, tags)
                raise
            finally:
                watch.cancel()
                lost.cancel()
        finally:
            try:
                await asyncio.wait_for(connection.close(), timeout=2)
            except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
                log.info("broker_connection_dropped", error=type(error).__name__)

    async def _subscribe(self, connection: AbstractConnection) -> tuple[AbstractChannel, Mapping[str, str]]:
        channel = await connection.channel(publisher_confirms=False)
        await topology.declare_events_exchange(channel)
        await topology.declare_retry_ladder(channel)
        queues = [
            await topology.declare_subscription(channel, consumer=self._service, event_type=s.event.type)
            for s in self._subscriptions
        ]
        tags: dict[str, str] = {}
        for queue, subscription in zip(queues, self._subscriptions, strict=True):
            await channel.set_qos(prefetch_count=subscription.prefetch)
            tags[queue.name] = await queue.consume(self._callback(subscription, queue.name))
        return channel, tags

    async def _watch_presence(self, connection: AbstractConnection) -> None:
        """Ask the broker every few seconds whether each queue still has a consumer; raise ConsumerLost if not."""
        channel = await connection.channel(publisher_confirms=False)
        while True:
            for name in self.queues:
                async with asyncio.timeout(5):
                    queue = (await channel.declare_queue(name, passive=True)).declaration_result
                    parked = (await channel.declare_queue(topology.parked_queue(name), passive=True)).declaration_result
                self._states[name] = QueueState(
                    consumers=queue.consumer_count or 0,
                    waiting=queue.message_count or 0,
                    parked=parked.message_count or 0,
                )
                if not queue.consumer_count:
                    raise ConsumerLost(f"queue {name} has no consumer")
            self._seen_at = time.monotonic()
            await asyncio.sleep(PRESENCE_INTERVAL_S)

    async def _drain(self, channel: AbstractChannel, tags: Mapping[str, str]) -> None:
        """Stop taking messages and let the ones in hand commit and ack, so that a shutdown spends no delivery."""
        for name, tag in tags.items():
            try:
                queue = await channel.get_queue(name, ensure=False)
                await queue.cancel(tag, timeout=1)
            except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
                log.info("consumer_cancel_failed", queue=name, error=type(error).__name__)
        if self._in_flight:
            await asyncio.wait(self._in_flight, timeout=5)

    def _callback(self, subscription: Subscription, queue: str) -> Callable[[AbstractIncomingMessage], Awaitable[None]]:
        async def on_message(message: AbstractIncomingMessage) -> None:
            task = asyncio.current_task()
            if task is not None:
                self._in_flight.add(task)
                task.add_done_callback(self._in_flight.discard)
            try:
                await self._handle(subscription, queue, message)
            except CONNECTION_EXCEPTIONS as error:
                # The channel is gone and our ack with it: the broker delivers again, and the inbox knows the message.
                log.warning("message_left_unacked", queue=queue, error=type(error).__name__)

        return on_message

    async def _handle(self, subscription: Subscription, queue: str, message: AbstractIncomingMessage) -> None:
        started = time.perf_counter()
        traceparent = message.headers.get("traceparent")
        with span(
            f"consume {queue}",
            service=self._service,
            kind=SpanKind.CONSUMER,
            traceparent=traceparent if isinstance(traceparent, str) else None,
        ):
            outcome = await self._settle(subscription, queue, message)
            log.info("message_handled", queue=queue, outcome=outcome, message_id=message.message_id)
        MESSAGES.labels(queue, outcome).observe(time.perf_counter() - started)

    async def _settle(self, subscription: Subscription, queue: str, message: AbstractIncomingMessage) -> str:
        """Bring the message to its end and return which: done, duplicate, retried or parked. Always acks last."""
        while True:
            try:
                outcome = await self._apply(subscription, message)
            except DatabaseUnavailable as error:
                # Wait with the message in hand: prefetch bounds what waits, and no delivery is counted against it.
                log.warning("consuming_paused", queue=queue, error=str(error))
                await asyncio.sleep(0.05)
                await self._database.wait_until_up()
                continue
            except (Unavailable, LimitExceeded) as error:
                outcome = await self._retry_later(queue, message, error)
            except VentureError as error:
                outcome = await self._park(queue, message, reason=error.code, error=error)
            except Exception as error:
                log.exception("handler_failed", queue=queue, message_id=message.message_id)
                if _attempt(message) < MAX_UNEXPECTED_ATTEMPTS:
                    outcome = await self._retry_later(queue, message, error)
                else:
                    outcome = await self._park(queue, message, reason="attempts_exhausted", error=error)
            await message.ack()
            return outcome

    async def _apply(self, subscription: Subscription, message: AbstractIncomingMessage) -> str:
        event = parse(message.body, expected=subscription.event)
        async with self._database.transaction() as conn:
            if not await inbox.claim(conn, event_id=event.event_id, event_type=event.type):
                return "duplicate"
            await subscription.handler(event, conn)
        if subscription.wake is not None:
            subscription.wake()
        return "done"

    async def _retry_later(self, queue: str, message: AbstractIncomingMessage, error: Exception) -> str:
        attempt = _attempt(message)
        rung = min(attempt, len(topology.RETRY_DELAYS_S)) - 1
        await self._publish(
            exchange=topology.retry_exchange(topology.RETRY_DELAYS_S[rung]),
            routing_key=queue,
            body=message.body,
            message_id=message.message_id,
            headers={**message.headers, ATTEMPT_HEADER: attempt + 1, "x-last-error": _describe(error)},
        )
        return "retried"

    async def _park(self, queue: str, message: AbstractIncomingMessage, *, reason: str, error: Exception) -> str:
        await self._publish(
            exchange="",
            routing_key=topology.parked_queue(queue),
            body=message.body,
            message_id=message.message_id,
            headers={
                **message.headers,
                "x-parked-reason": reason,
                "x-parked-error": _describe(error),
                "x-parked-from": queue,
                "x-parked-attempts": _attempt(message),
            },
        )
        log.error("message_parked", queue=queue, reason=reason, message_id=message.message_id)
        return "parked"

    async def _publish(
        self, *, exchange: str, routing_key: str, body: bytes, message_id: str | None, headers: dict[str, Any]
    ) -> None:
        """Publish before the ack, for as long as it takes: during an alarm the message waits in hand, uncounted."""
        while True:
            try:
                await self._publisher.publish(
                    exchange=exchange, routing_key=routing_key, body=body, message_id=message_id, headers=headers
                )
            except BrokerUnavailable as error:
                log.warning("republish_failed", routing_key=routing_key, error=error.detail)
                await asyncio.sleep(1)
            else:
                return


def parse(body: bytes, *, expected: type[Event]) -> Event:
    """Turn a body into its event; raises MalformedEvent if it is another's, of an unknown type, or does not fit."""
    envelope = Envelope.parse(body)
    if envelope.type not in CATALOGUE:
        raise MalformedEvent(f"unknown event type {envelope.type[:100]!r}")
    if envelope.type != expected.type:
        raise MalformedEvent(f"{envelope.type} came to the queue of {expected.type}")
    return expected.from_envelope(envelope)


def _attempt(message: AbstractIncomingMessage) -> int:
    value = message.headers.get(ATTEMPT_HEADER, 1)
    return value if isinstance(value, int) and value > 0 else 1


def _describe(error: Exception) -> str:
    # Only a meant error's text was written to be shown; another's may repeat data.
    return f"{type(error).__name__}: {error.detail}"[:500] if isinstance(error, VentureError) else type(error).__name__


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)
