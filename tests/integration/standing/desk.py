"""Where standing tests hand messages to the consumers of all four services, and look at what became of them."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Final
from uuid import UUID

import aio_pika
import orjson
from aio_pika.abc import AbstractIncomingMessage
from prometheus_client import REGISTRY

from libs.common import database as db
from libs.common.broker import RETRY_DELAYS_S, BrokerPublisher, Consumer, Subscription, open_publisher, retry_exchange
from libs.common.clock import iso_millis, system_clock
from libs.common.database import Connection, Database
from libs.common.events import Event
from tests.harness.patience import eventually
from tests.harness.services import Place
from tests.harness.subscriptions import Subscribed, tables
from tests.harness.tasks import running

OUTCOMES: Final = ("done", "duplicate", "retried", "parked")
Tables = Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Desk:
    """All consumers, on one database. A handler does its work and then breaks if its event is in `breaking`."""

    place: Place
    publisher: BrokerPublisher
    databases: Mapping[str, Database]
    breaking: dict[UUID, Exception] = field(default_factory=dict[UUID, Exception])

    async def deliver(self, one: Subscribed, *bodies: bytes, headers: Mapping[str, Any] | None = None) -> list[str]:
        """Put messages into the subscription's own queue, all at once; return what became of them, in no order."""
        before = _counts(one.queue)
        for body in bodies:
            await self.publisher.publish(
                exchange="", routing_key=one.queue, body=body, message_id="m", headers=dict(headers or {})
            )

        async def settled() -> list[str] | None:
            after = _counts(one.queue)
            outcomes = [name for name in OUTCOMES for _ in range(after[name] - before[name])]
            return outcomes if len(outcomes) >= len(bodies) else None

        outcomes = await eventually(settled)
        assert outcomes is not None
        return outcomes

    async def tables(self) -> Tables:
        """A fingerprint of every table: two that are equal hold the same rows."""
        rows = await self.place.database.fetch(
            """
            SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables
            WHERE schemaname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1
            """
        )
        names: list[str] = [row["name"] for row in rows]
        digest = "md5(string_agg(t::text, '|' ORDER BY t::text))"
        parts = [f"SELECT '{name}' AS name, {digest} AS rows FROM {name} AS t" for name in names]  # noqa: S608 - listed
        return {row["name"]: row["rows"] for row in await self.place.database.fetch(" UNION ALL ".join(parts))}

    async def take_retried(self) -> AbstractIncomingMessage | None:
        """Take the message that waits on the first rung of a retry ladder."""
        connection = await aio_pika.connect(self.place.amqp_url("operator"))
        async with connection, connection.channel() as channel:
            for service in self.databases:
                rung = await channel.get_queue(retry_exchange(service, RETRY_DELAYS_S[0]), ensure=False)
                message = await rung.get(fail=False)
                if message is not None:
                    await message.ack()
                    return message
            return None


def body_of(event: Event, **attributes: Any) -> bytes:
    """The message a relay would send, with attributes of the envelope replaced or added."""
    envelope = {
        "specversion": "1.0",
        "id": str(event.event_id),
        "type": event.type,
        "source": event.owner(),
        "subject": event.subject,
        "time": iso_millis(system_clock()),
        "data": event.model_dump(mode="json"),
        **attributes,
    }
    return orjson.dumps(envelope)


def changed(before: Tables, after: Tables) -> set[str]:
    return {name for name in after if before.get(name) != after[name]}


def _counts(queue: str) -> dict[str, int]:
    """How many messages came to which end so far, as the runner counts them after the ack."""
    name = "messages_handled_duration_seconds_count"
    return {it: int(REGISTRY.get_sample_value(name, {"queue": queue, "outcome": it}) or 0) for it in OUTCOMES}


@asynccontextmanager
async def open_desk(place: Place) -> AsyncGenerator[Desk, None]:
    async with AsyncExitStack() as stack:
        databases = {
            service: await stack.enter_async_context(
                db.connect(place.database.url(f"venture_{service}"), application_name=f"standing-{service}", max_size=4)
            )
            for service in tables()
        }
        publisher = await stack.enter_async_context(open_publisher(place.amqp_url("operator"), name="standing"))
        desk = Desk(place=place, publisher=publisher, databases=databases)
        consumers = [
            Consumer(
                place.amqp_url("operator"),
                service=service,
                subscriptions=[_breakable(subscription, desk.breaking) for subscription in table],
                database=databases[service],
                publisher=publisher,
            )
            for service, table in tables().items()
        ]
        await stack.enter_async_context(running(*(consumer.run for consumer in consumers)))
        await eventually(lambda: _all_consume(consumers), within_s=30)
        yield desk


async def _all_consume(consumers: list[Consumer]) -> bool:
    return all(set(consumer.states()) == set(consumer.queues) for consumer in consumers)


def _breakable(subscription: Subscription, breaking: Mapping[UUID, Exception]) -> Subscription:
    handler: Callable[[Any, Connection], Awaitable[None]] = subscription.handler

    async def work_then_break(event: Event, conn: Connection) -> None:
        await handler(event, conn)
        if event.event_id in breaking:
            raise breaking[event.event_id]

    return replace(subscription, handler=work_then_break)
