"""What becomes of the messages of one queue, written once: parse, inbox, handler, commit, ack last.

What has arrived meanwhile is handled together: each message in its own trace, all of them in one transaction. That is
one commit instead of many, and one connection a queue however deep its backlog. A message that breaks the transaction
is taken out and settled alone by the meaning of its error; the others go on without it.

Nothing is acked because it failed. What may succeed later goes up the retry ladder, what cannot is parked with its
reason, and while the database is away messages wait where they are instead of burning deliveries.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS
from aiormq.abc import AbstractChannel, DeliveredMessage
from opentelemetry.trace import Span, SpanKind
from prometheus_client import Histogram

from libs.common import inbox
from libs.common.broker import topology
from libs.common.broker.message import Message, is_suspect, unpack
from libs.common.broker.publisher import BrokerPublisher, BrokerUnavailable
from libs.common.database import Connection, Database, DatabaseUnavailable
from libs.common.errors import LimitExceeded, Unavailable, VentureError
from libs.common.events import CATALOGUE, Envelope, Event, MalformedEvent
from libs.common.logs import log_handled
from libs.common.telemetry import MESSAGES, in_span, start_span, trace_id_of

log = structlog.get_logger(__name__)

ATTEMPT_HEADER: Final = "x-attempt"
MAX_UNEXPECTED_ATTEMPTS: Final = len(topology.RETRY_DELAYS_S) + 1
"""An error without a meaning is tried once per rung of the ladder, then parked: about six minutes in all."""
BATCH: Final = 32
"""By bench.events, in alternation: a transaction for each message drains 1,900 a second at 0.36 s of processor per
thousand, batches of up to 32 drain 4,560 at 0.16 s."""
MANY_BATCH: Final = 256
"""Of a subscription that handles many at once: its round trips are the same for any number, so what it waits for is
shared by as many as have come."""
PREFETCH: Final = 64
"""Messages, of up to MOST_EVENTS events each: what waits in this process is bounded by a few MB a queue."""
LINGER_S: Final = 0.05
COMPANY: Final = 4
COMPANY_S: Final = 0.015
"""So many at once are a crowd, and what follows a crowd waits a moment for the rest of it: all that comes after is then
done for more of them together. Of 32 who wait for their runs, in turns, 302 a second are served, without it 222."""

Handler = Callable[[Any, Connection], Awaitable[None]]
ManyHandler = Callable[[Sequence[Any], Connection], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """One event this service consumes. `wake` runs after a commit of the handler's, to rouse a loop of this process.

    `many` does for a batch what `handler` does for each of it, in fewer round trips. It runs in no message's trace, and
    after an error of its own each message is handled alone. `lingers`: a batch waits for more to come; for what nobody
    waits for. `lingers_in_company`: it waits, for a moment, only where it follows a crowd; who comes alone is not kept.
    """

    event: type[Event]
    handler: Handler
    many: ManyHandler | None = None
    lingers: bool = False
    lingers_in_company: bool = False
    wake: Callable[[], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Delivery:
    """A message that could be read, in the trace of whoever caused it."""

    message: Message
    event: Event
    span: Span
    started: float

    @property
    def lock_order(self) -> str:
        """Batches of two replicas lock the rows of their users in the same order, or they would wait for each other."""
        return str(getattr(self.event, "user_id", self.event.subject))


class Lane:
    """One subscription's queue on a channel of its own, so that a batch is acked by one frame."""

    def __init__(
        self, subscription: Subscription, *, service: str, database: Database, publisher: BrokerPublisher
    ) -> None:
        self._subscription = subscription
        self._service = service
        self._database = database
        self._publisher = publisher
        self._channel: AbstractChannel | None = None
        self._consumer_tag = ""
        self._arrived: asyncio.Queue[Message | None] = asyncio.Queue()
        self._timers: dict[str, Histogram] = {}
        self._last_size = 0
        self._batch = BATCH if subscription.many is None else MANY_BATCH
        self.name = topology.queue_name(service, subscription.event.type)
        self.lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        """Done when the broker has closed the channel or cancelled the consumer."""

    async def open(self, connection: AbstractConnection) -> None:
        """Declare the queue and start to receive from it."""
        channel = await connection.channel(publisher_confirms=False)
        channel.close_callbacks.add(self._lose)
        self._channel = await channel.get_underlay_channel()
        self._channel.on_consumer_cancel_callbacks.add(self._lose)
        await topology.declare_subscription(channel, consumer=self._service, event_type=self._subscription.event.type)
        await channel.set_qos(prefetch_count=PREFETCH)
        # Straight from the driver's channel: aio-pika makes an object of its own and a second task of each message.
        consuming = await self._channel.basic_consume(self.name, self._arrive)
        self._consumer_tag = consuming.consumer_tag or ""

    async def run(self) -> None:
        """Settle what arrives, until `stop`. Raises what the connection breaks with: the broker then delivers again."""
        while True:
            first = await self._arrived.get()
            messages: list[Message | None] = [None] if first is None else [*unpack(first)]
            if first is not None and self._arrived.qsize() + 1 < self._batch and (pause_s := self._pause_s()):
                await asyncio.sleep(pause_s)
            while len(messages) < self._batch and not self._arrived.empty():
                messages += self._next()
            self._last_size = len(messages)
            await self._settle([message for message in messages if message is not None])
            if None in messages:
                return

    def _next(self) -> Sequence[Message | None]:
        """The events of the next message that has arrived, or None where the end was asked for."""
        message = self._arrived.get_nowait()
        return [None] if message is None else unpack(message)

    def _pause_s(self) -> float:
        """How long what has come waits for more."""
        if self._subscription.lingers:
            return LINGER_S
        return COMPANY_S if self._subscription.lingers_in_company and self._last_size >= COMPANY else 0

    async def stop(self) -> None:
        """Receive nothing more; `run` returns once what has arrived is settled."""
        if self._channel is not None:
            try:
                await self._channel.basic_cancel(self._consumer_tag)
            except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
                log.info("consumer_cancel_failed", queue=self.name, error=type(error).__name__)
        self._arrived.put_nowait(None)

    async def _arrive(self, delivered: DeliveredMessage) -> None:
        properties = delivered.header.properties
        headers = properties.headers or {}
        self._arrived.put_nowait(
            Message.whole(delivered.delivery_tag or 0, properties.message_id, headers, delivered.body)
        )

    async def _ack(self, message: Message, *, and_all_before: bool = False) -> None:
        """Ack what it came in, unless more of it is open."""
        if self._channel is None:
            raise RuntimeError("nothing can have come by a channel that was never opened")
        message.parcel.open -= 1
        if and_all_before or message.parcel.open == 0:
            await self._channel.basic_ack(message.parcel.tag, multiple=and_all_before)

    def _lose(self, *_why: Any) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    async def _settle(self, messages: Sequence[Message]) -> None:
        """Bring each message to its end: done, duplicate, retried or parked."""
        deliveries = [it for message in messages if (it := await self._read(message)) is not None]
        while len(deliveries) > 1:
            troubled = await self._settle_together(deliveries)
            for delivery in troubled:
                await self._settle_alone(delivery)
            deliveries = [it for it in deliveries if it not in troubled] if troubled else []
        for delivery in deliveries:
            await self._settle_alone(delivery)

    async def _read(self, message: Message) -> Delivery | None:
        """The message as an event. What cannot be read is parked at once, and a suspect is sent back by itself."""
        traceparent = message.headers.get("traceparent")
        span = start_span(
            f"consume {self.name}",
            service=self._service,
            kind=SpanKind.CONSUMER,
            traceparent=traceparent if isinstance(traceparent, str) else None,
        )
        started = time.perf_counter()
        if is_suspect(message):
            with in_span(span, end_on_exit=True):
                outcome = await self._send_back_alone(message)
                await self._ack(message)
                self._tell(message, outcome, started, span)
            return None
        try:
            event = parse(message.content, expected=self._subscription.event)
        except MalformedEvent as error:
            with in_span(span, end_on_exit=True):
                outcome = await self._park(message, reason=error.code, error=error)
                await self._ack(message)
                self._tell(message, outcome, started, span)
            return None
        return Delivery(message=message, event=event, span=span, started=started)

    async def _settle_together(self, deliveries: Sequence[Delivery]) -> Sequence[Delivery]:
        """Handle all in one transaction and ack them; or commit nothing and return those to be settled alone."""
        handled: list[Delivery] = []
        at_fault: Sequence[Delivery] = ()
        try:
            async with self._database.transaction() as conn:
                fresh = await inbox.claim(conn, [delivery.event for delivery in deliveries])
                for delivery in sorted(deliveries, key=lambda it: it.lock_order):
                    if delivery.event.event_id in fresh:
                        fresh.remove(delivery.event.event_id)
                        handled.append(delivery)
                if self._subscription.many is not None:
                    at_fault = deliveries
                    await self._subscription.many([delivery.event for delivery in handled], conn)
                else:
                    for delivery in handled:
                        at_fault = [delivery]
                        with in_span(delivery.span):
                            await self._subscription.handler(delivery.event, conn)
                at_fault = ()
        except Exception as error:
            if not at_fault and not isinstance(error, DatabaseUnavailable):
                raise
            # Settled alone next, where what the error means decides.
            log.info("batch_undone", queue=self.name, size=len(deliveries), error=type(error).__name__)
            return at_fault or deliveries
        if handled and self._subscription.wake is not None:
            self._subscription.wake()
        # All that came before on this channel is acked: this takes the batch and nothing else.
        await self._ack(max((it.message for it in deliveries), key=lambda it: it.parcel.tag), and_all_before=True)
        done = set(handled)
        for delivery in deliveries:
            self._tell(delivery.message, "done" if delivery in done else "duplicate", delivery.started, delivery.span)
            delivery.span.end()
        return ()

    async def _settle_alone(self, delivery: Delivery) -> None:
        with in_span(delivery.span, end_on_exit=True):
            outcome = await self._end(delivery)
            await self._ack(delivery.message)
            self._tell(delivery.message, outcome, delivery.started, delivery.span)

    async def _end(self, delivery: Delivery) -> str:
        """Handle one message, or put it where its error says; return which."""
        message = delivery.message
        while True:
            try:
                return await self._apply(delivery.event)
            except DatabaseUnavailable as error:
                # Wait with the message in hand: prefetch bounds what waits, and no delivery is counted against it.
                log.warning("consuming_paused", queue=self.name, error=str(error))
                await asyncio.sleep(0.05)
                await self._database.wait_until_up()
            except (Unavailable, LimitExceeded) as error:
                return await self._retry_later(message, error)
            except VentureError as error:
                return await self._park(message, reason=error.code, error=error)
            except Exception as error:
                log.exception("handler_failed", queue=self.name, message_id=message.message_id)
                if _attempt(message) < MAX_UNEXPECTED_ATTEMPTS:
                    return await self._retry_later(message, error)
                return await self._park(message, reason="attempts_exhausted", error=error)

    async def _apply(self, event: Event) -> str:
        async with self._database.transaction() as conn:
            if not await inbox.claim(conn, [event]):
                return "duplicate"
            await self._subscription.handler(event, conn)
        if self._subscription.wake is not None:
            self._subscription.wake()
        return "done"

    def _tell(self, message: Message, outcome: str, started: float, span: Span) -> None:
        message_id = str(message.message_id)
        log_handled(queue=self.name, outcome=outcome, message_id=message_id, trace_id=trace_id_of(span))
        timer = self._timers.get(outcome)
        if timer is None:  # looked up once: finding a metric by its labels costs more than counting in it
            timer = self._timers[outcome] = MESSAGES.labels(self.name, outcome)
        timer.observe(time.perf_counter() - started)

    async def _send_back_alone(self, message: Message) -> str:
        """To the end of its own queue: if it is deadly, it then takes no other event along to where it is parked."""
        home = topology.home_exchange(self._service)
        await self._publish(message, exchange=home, routing_key=self.name, headers={})
        return "sent_alone"

    async def _retry_later(self, message: Message, error: Exception) -> str:
        attempt = _attempt(message)
        rung = min(attempt, len(topology.RETRY_DELAYS_S)) - 1
        await self._publish(
            message,
            exchange=topology.retry_exchange(self._service, topology.RETRY_DELAYS_S[rung]),
            routing_key=self.name,
            headers={ATTEMPT_HEADER: attempt + 1, "x-last-error": _describe(error)},
        )
        return "retried"

    async def _park(self, message: Message, *, reason: str, error: Exception) -> str:
        await self._publish(
            message,
            exchange=topology.home_exchange(self._service),
            routing_key=topology.parked_queue(self.name),
            headers={
                "x-parked-reason": reason,
                "x-parked-error": _describe(error),
                "x-parked-from": self.name,
                "x-parked-attempts": _attempt(message),
            },
        )
        log.error("message_parked", queue=self.name, reason=reason, message_id=message.message_id)
        return "parked"

    async def _publish(self, message: Message, *, exchange: str, routing_key: str, headers: dict[str, Any]) -> None:
        """Publish before the ack, for as long as it takes: during an alarm the message waits in hand, uncounted."""
        while True:
            try:
                await self._publisher.publish(
                    exchange=exchange,
                    routing_key=routing_key,
                    body=message.body,
                    message_id=message.message_id,
                    headers={**message.headers, **headers},
                )
            except BrokerUnavailable as error:
                log.warning("republish_failed", routing_key=routing_key, error=error.detail)
                await asyncio.sleep(1)
            else:
                return


def parse(content: bytes | Mapping[str, Any], *, expected: type[Event]) -> Event:
    """Turn a body into its event; raises MalformedEvent if it is another's, of an unknown type, or does not fit."""
    envelope = Envelope.parse(content)
    if envelope.type not in CATALOGUE:
        raise MalformedEvent(f"unknown event type {envelope.type[:100]!r}")
    if envelope.type != expected.type:
        raise MalformedEvent(f"{envelope.type} came to the queue of {expected.type}")
    return expected.from_envelope(envelope)


def _attempt(message: Message) -> int:
    value = message.headers.get(ATTEMPT_HEADER, 1)
    return value if isinstance(value, int) and value > 0 else 1


def _describe(error: Exception) -> str:
    # Only a meant error's text was written to be shown; another's may repeat data.
    return f"{type(error).__name__}: {error.detail}"[:500] if isinstance(error, VentureError) else type(error).__name__
