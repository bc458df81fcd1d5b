"""The two ends of an event's way, in this process: a relay that empties an outbox, and a consumer that takes."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from libs.common import database as db
from libs.common import outbox
from libs.common.broker import BrokerPublisher, Consumer, Subscription, open_publisher
from libs.common.database import Database
from tests.harness.patience import eventually
from tests.harness.services import Place
from tests.harness.tasks import running


@dataclass(frozen=True, slots=True, kw_only=True)
class Taker:
    consumer: Consumer
    publisher: BrokerPublisher


@asynccontextmanager
async def a_relay(place: Place, service: str) -> AsyncGenerator[Database, None]:
    """Whoever adds to the service's outbox by this database has it sent."""
    async with (
        db.connect(place.database.url(f"venture_{service}"), application_name=f"test-relay-{service}") as source,
        open_publisher(place.amqp_url(service), name=f"relay-{service}") as publisher,
        running(outbox.Relay(source, publisher, source=service).run),
    ):
        yield source


@asynccontextmanager
async def a_consumer(place: Place, service: str, *subscriptions: Subscription) -> AsyncGenerator[Taker, None]:
    """At work once its queues are there and served: nothing that is sent from now on is without a way."""
    async with (
        db.connect(place.database.url(f"venture_{service}"), application_name=f"test-{service}") as database,
        open_publisher(place.amqp_url(service), name=service) as publisher,
    ):
        consumer = Consumer(
            place.amqp_url(service),
            service=service,
            subscriptions=subscriptions,
            database=database,
            publisher=publisher,
        )

        async def is_served() -> bool:
            states = consumer.states()
            return all(name in states and states[name].consumers for name in consumer.queues)

        async with running(consumer.run):
            await eventually(is_served, within_s=30)
            yield Taker(consumer=consumer, publisher=publisher)
