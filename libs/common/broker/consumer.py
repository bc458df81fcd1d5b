"""All subscriptions of one process over one consuming connection, and the watch that each queue has its consumer."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import aio_pika
import structlog
from aio_pika.abc import AbstractConnection
from aio_pika.exceptions import CONNECTION_EXCEPTIONS

from libs.common.broker import topology
from libs.common.broker.lane import Lane, Subscription
from libs.common.broker.publisher import BrokerPublisher
from libs.common.database import Database

log = structlog.get_logger(__name__)

RECONNECT_MAX_S: Final = 2.0
PRESENCE_INTERVAL_S: Final = 5.0
DRAIN_S: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueState:
    """What the broker said of one queue: how many consumers it has, how many messages wait, how many are parked."""

    consumers: int
    waiting: int
    parked: int


class ConsumerLost(Exception):
    """The broker took a consumer away, or never had it; the connection is rebuilt."""


class Consumer:
    """Rebuilds its connection whole whenever any part of it fails.

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
            await self._prepare(connection)
            lanes = [
                Lane(subscription, service=self._service, database=self._database, publisher=self._publisher)
                for subscription in self._subscriptions
            ]
            for lane in lanes:
                await lane.open(connection)
            work = [asyncio.ensure_future(lane.run()) for lane in lanes]
            watch = asyncio.ensure_future(self._watch_presence(connection))
            try:
                watched = {watch, *work, *(lane.lost for lane in lanes)}
                done, _ = await asyncio.wait(watched, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    future.result()
                raise ConsumerLost("the broker closed a channel or cancelled a consumer")
            except asyncio.CancelledError:
                await _drain(lanes, work)
                raise
            finally:
                for task in (watch, *work):
                    task.cancel()
        finally:
            try:
                async with asyncio.timeout(2):
                    await connection.close()
            except (TimeoutError, *CONNECTION_EXCEPTIONS) as error:
                log.info("broker_connection_dropped", error=type(error).__name__)

    async def _prepare(self, connection: AbstractConnection) -> None:
        async with connection.channel(publisher_confirms=False) as channel:
            await topology.find_events_exchange(channel)
            await topology.declare_retry_ladder(channel, consumer=self._service)

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


async def _drain(lanes: Sequence[Lane], work: Sequence[asyncio.Task[None]]) -> None:
    """Stop taking messages and let the ones in hand commit and ack, so that a shutdown spends no delivery."""
    await asyncio.gather(*(lane.stop() for lane in lanes))
    if work:
        await asyncio.wait(work, timeout=DRAIN_S)
