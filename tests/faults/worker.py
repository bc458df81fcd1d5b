"""A process to be killed: relays one service's outbox and consumes another's queue, sound or broken in one known way.

The broken ways are the controls of the fault tests: each leaves out one thing that the design is careful about, and the
scenario must notice. `python -m tests.faults.worker` reads its addresses as JSON on standard input.
"""

import asyncio
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
from aiormq.abc import DeliveredMessage

from libs.common import database as db
from libs.common import inbox, outbox
from libs.common.broker import BrokerPublisher, Consumer, Subscription, consumer, open_publisher
from libs.common.broker.lane import Lane, Message
from libs.common.broker.publisher import BrokerUnavailable, Unroutable
from libs.common.database import Connection
from libs.common.events import EncodedEvent, Event
from libs.common.events.agents import RunStarted
from libs.common.logs import configure_logging

CONTROLS: Final = ("inbox off", "ack early", "cursor outbox", "not mandatory")


async def on_run_started(event: RunStarted, conn: Connection) -> None:
    """One row an effect, without a key: an effect too many is there to be seen."""
    await conn.execute("INSERT INTO metering.fault_effects (run_id) VALUES ($1)", event.run_id)


async def on_run_started_slowly(event: RunStarted, conn: Connection) -> None:
    """So that a kill finds work in hand: what is acked too early would else be done all the same."""
    await on_run_started(event, conn)
    await conn.execute("SELECT pg_sleep(0.01)")


async def _everything_is_new(_conn: Connection, events: list[Event]) -> set[Any]:
    return {event.event_id for event in events}


class EarlyAck(Lane):
    """Acks what arrives and works on it afterwards."""

    async def _arrive(self, delivered: DeliveredMessage) -> None:
        await delivered.channel.basic_ack(delivered.delivery_tag or 0)
        await super()._arrive(delivered)

    async def _ack(self, message: Message, *, and_all_before: bool = False) -> None:  # noqa: ARG002
        return


class Cursor:
    """Remembers the last id it sent, and asks for what lies behind it."""

    def __init__(self, database: db.Database, publisher: BrokerPublisher) -> None:
        self._database = database
        self._publisher = publisher

    async def run(self) -> None:
        while True:
            async with self._database.transaction() as conn:
                rows = await conn.fetch(
                    """
                    SELECT id, type, subject, data, traceparent, created_at, attempts FROM outbox
                    WHERE id > coalesce(
                        (SELECT id FROM outbox WHERE sent_at IS NOT NULL ORDER BY id DESC LIMIT 1),
                        '00000000-0000-0000-0000-000000000000'
                    )
                    ORDER BY id LIMIT 200
                    """
                )
            with suppress(BrokerUnavailable):
                for row in rows:
                    await self._send(outbox.OutboxRow(**dict(row)))
            await asyncio.sleep(0.05)

    async def _send(self, event: outbox.OutboxRow) -> None:
        await self._publisher.publish_event(
            routing_key=event.type, body=event.body("agents"), message_id=str(event.id), traceparent=None
        )
        async with self._database.transaction() as conn:
            await outbox.mark_sent(conn, [event.id])


class Careless(BrokerPublisher):
    """Takes the broker's word for it: a confirm, but no question whether any queue took the message."""

    async def publish_events(self, events: Sequence[EncodedEvent]) -> Sequence[BrokerUnavailable | None]:
        return [None if isinstance(error, Unroutable) else error for error in await super().publish_events(events)]


async def work(addresses: dict[str, str], control: str) -> None:
    if control == "inbox off":
        inbox.claim = _everything_is_new
    if control == "ack early":
        consumer.Lane = EarlyAck
    async with (
        db.connect(addresses["source"], application_name="fault-source") as source,
        db.connect(addresses["sink"], application_name="fault-sink") as sink,
        open_publisher(addresses["amqp"], name="fault") as publisher,
    ):
        sender = Careless(addresses["amqp"], name="careless") if control == "not mandatory" else publisher
        relay = Cursor(source, sender) if control == "cursor outbox" else outbox.Relay(source, sender, source="agents")
        taker = Consumer(
            addresses["amqp"],
            service="metering",
            subscriptions=[Subscription(event=RunStarted, handler=on_run_started_slowly)],
            database=sink,
            publisher=publisher,
        )
        async with asyncio.TaskGroup() as group:
            group.create_task(relay.run())
            group.create_task(taker.run())


def main() -> None:
    configure_logging(service="fault-worker", level="ERROR")
    asyncio.run(work(orjson.loads(sys.stdin.buffer.readline()), sys.argv[1] if len(sys.argv) > 1 else ""))


if __name__ == "__main__":
    main()
