"""Poison among ten thousand messages, while the queue where it is put aside is gone: nothing is lost, nobody waits."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import aio_pika
import pytest

from libs.common import database as db
from libs.common import outbox
from libs.common.broker import Consumer, ParkedMessages, Subscription, open_publisher, parked_queue, queue_name
from libs.common.database import Connection
from libs.common.errors import Invalid
from libs.common.events.agents import RunStarted
from libs.common.ids import new_id
from tests.builders import an_event
from tests.faults.verdict import chance_of, judge
from tests.faults.worker import on_run_started
from tests.harness.patience import eventually
from tests.harness.services import Place
from tests.harness.tasks import running

EVENTS: Final = 10_000
POISON: Final = 100
AT_ONCE: Final = 500
QUEUE: Final = queue_name("metering", RunStarted.type)


@dataclass(slots=True)
class Stomach:
    """Takes everything but poison, until it is mended."""

    poison: set[UUID] = field(default_factory=set[UUID])

    async def on_run_started(self, event: RunStarted, conn: Connection) -> None:
        if event.run_id in self.poison:
            raise Invalid("this run makes no sense")
        await on_run_started(event, conn)


@asynccontextmanager
async def a_consumer(place: Place, stomach: Stomach) -> AsyncGenerator[ParkedMessages, None]:
    """Relay and consumer at work."""
    async with (
        db.connect(place.database.url("venture_agents"), application_name="fault-source") as source,
        db.connect(place.database.url("venture_metering"), application_name="fault-sink") as sink,
        open_publisher(place.amqp_url("agents"), name="fault-source") as sender,
        open_publisher(place.amqp_url("metering"), name="fault-sink") as publisher,
    ):
        taker = Consumer(
            place.amqp_url("metering"),
            service="metering",
            subscriptions=[Subscription(event=RunStarted, handler=stomach.on_run_started)],
            database=sink,
            publisher=publisher,
        )

        async def consuming() -> bool:
            return QUEUE in taker.states()

        async with running(taker.run):
            await eventually(consuming, within_s=30)
            async with running(outbox.Relay(source, sender, source="agents").run):
                yield ParkedMessages(place.amqp_url("metering"), publisher=publisher, name="metering")


async def write_events(place: Place, events: list[RunStarted]) -> None:
    async with db.connect(place.database.url("venture_agents"), application_name="fault-writer") as writer:
        for start in range(0, len(events), AT_ONCE):
            async with writer.transaction() as conn:
                await outbox.add(conn, *events[start : start + AT_ONCE])


async def delete_parked_queue(place: Place) -> None:
    connection = await aio_pika.connect(place.amqp_url("metering"))
    async with connection, connection.channel() as channel:
        await channel.queue_delete(parked_queue(QUEUE))


async def test_poison_is_put_aside_although_its_place_is_gone_and_holds_nobody_up(
    place: Place, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--seed") or secrets.randbelow(1_000_000)
    await place.database.execute("CREATE TABLE metering.fault_effects (run_id uuid NOT NULL)")
    await place.database.execute("GRANT SELECT, INSERT ON metering.fault_effects TO venture_metering")
    events = [an_event(RunStarted, run_id=new_id()) for _ in range(EVENTS)]
    poison = chance_of(seed).sample(events, POISON)
    stomach = Stomach(poison={event.run_id for event in poison})

    async def effects() -> list[str]:
        rows = await place.database.fetch("SELECT run_id::text AS id FROM metering.fault_effects")
        return [row["id"] for row in rows]

    async with a_consumer(place, stomach) as parked:
        await delete_parked_queue(place)
        await write_events(place, events)

        async def is_put_aside() -> bool:
            states = await parked.states([QUEUE])
            return QUEUE in states and states[QUEUE].parked == POISON and len(await effects()) == EVENTS - POISON

        await eventually(is_put_aside, within_s=120, every_s=0.5)
        seen = await parked.look(QUEUE, limit=POISON)
        assert {it.message_id for it in seen} == {str(event.event_id) for event in poison}
        assert {(it.reason, it.attempts) for it in seen} == {("invalid", 1)}
        stomach.poison.clear()
        assert await parked.replay(QUEUE) == POISON

        async def is_taken() -> bool:
            return len(await effects()) >= EVENTS

        await eventually(is_taken, within_s=60, every_s=0.5)
        left = (await parked.states([QUEUE]))[QUEUE].parked
    everything = [str(event.run_id) for event in events]
    verdict = judge(
        seed=seed, attempted=everything, acked=everything, effects=await effects(), poison=POISON, parked=left
    )
    print(verdict)
    assert verdict.is_clean, str(verdict)
    assert left == 0
