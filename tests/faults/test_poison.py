"""Poison among ten thousand messages, while the queue where it is put aside is gone: nothing is lost, nobody waits."""

import secrets
from dataclasses import dataclass, field
from typing import Final
from uuid import UUID

import aio_pika
import pytest

from libs.common import outbox
from libs.common.broker import ParkedMessages, Subscription, parked_queue, queue_name
from libs.common.database import Connection, Database
from libs.common.errors import Invalid
from libs.common.events.agents import RunStarted
from libs.common.ids import new_id
from tests.builders import an_event
from tests.faults.verdict import chance_of, judge
from tests.faults.worker import on_run_started
from tests.harness.flow import a_consumer, a_relay
from tests.harness.patience import eventually
from tests.harness.services import Place

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


async def write_events(source: Database, events: list[RunStarted]) -> None:
    for start in range(0, len(events), AT_ONCE):
        async with source.transaction() as conn:
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

    started = Subscription(event=RunStarted, handler=stomach.on_run_started)
    async with a_consumer(place, "metering", started) as taker, a_relay(place, "agents") as source:
        parked = ParkedMessages(place.amqp_url("metering"), publisher=taker.publisher, name="metering")
        await delete_parked_queue(place)
        await write_events(source, events)

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
