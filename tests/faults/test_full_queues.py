"""A queue that is full says no to whoever sends: rows wait in the outbox, and come when there is room again."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

import pytest

from libs.common import database as db
from libs.common import outbox
from libs.common.broker import Consumer, Subscription, open_publisher, topology
from libs.common.events.agents import RunStarted
from libs.common.ids import new_id
from tests.builders import an_event
from tests.faults.verdict import chance_of, judge
from tests.faults.worker import on_run_started
from tests.harness.patience import eventually
from tests.harness.services import Place
from tests.harness.tasks import running

ROOM: Final = 100
EVENTS: Final = 1_000


@asynccontextmanager
async def a_consumer(place: Place) -> AsyncGenerator[Consumer, None]:
    async with (
        db.connect(place.database.url("venture_metering"), application_name="fault-sink") as database,
        open_publisher(place.amqp_url("metering"), name="fault-sink") as publisher,
    ):
        yield Consumer(
            place.amqp_url("metering"),
            service="metering",
            subscriptions=[Subscription(event=RunStarted, handler=on_run_started)],
            database=database,
            publisher=publisher,
        )


async def test_what_a_full_queue_does_not_take_waits_and_is_not_lost(
    place: Place, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--seed") or secrets.randbelow(1_000_000)
    chance = chance_of(seed)
    monkeypatch.setattr(topology, "MAX_QUEUE_LENGTH", ROOM)
    await place.database.execute("CREATE TABLE metering.fault_effects (run_id uuid NOT NULL)")
    await place.database.execute("GRANT SELECT, INSERT ON metering.fault_effects TO venture_metering")

    async def unsent() -> int:
        return await place.database.fetchval("SELECT count(*) FROM agents.outbox WHERE sent_at IS NULL")

    async def is_empty() -> bool:
        return await unsent() == 0

    async def is_refused() -> bool:
        return await place.database.fetchval("SELECT count(*) > 0 FROM agents.outbox WHERE last_error IS NOT NULL")

    async def all_have_come() -> bool:
        return await place.database.fetchval("SELECT count(*) FROM metering.fault_effects") >= EVENTS

    async with a_consumer(place) as taker, running(taker.run):  # makes the queue, and goes away again
        await eventually(partial(_is_there, taker), within_s=30)
    written: list[str] = []
    async with (
        db.connect(place.database.url("venture_agents"), application_name="fault-source") as source,
        open_publisher(place.amqp_url("agents"), name="fault-source") as publisher,
        running(outbox.Relay(source, publisher, source="agents").run),
    ):
        while len(written) < EVENTS:
            events = [an_event(RunStarted, run_id=new_id()) for _ in range(chance.randint(20, 80))][
                : EVENTS - len(written)
            ]
            async with source.transaction() as conn:
                await outbox.add(conn, *events)
            written += [str(event.run_id) for event in events]
        await eventually(is_refused, within_s=30)
        left = await unsent()
        async with a_consumer(place) as taker, running(taker.run):
            await eventually(all_have_come, within_s=120, every_s=0.2)
            await eventually(is_empty, within_s=60, every_s=0.2)
    rows = await place.database.fetch("SELECT run_id::text AS id FROM metering.fault_effects")
    verdict = judge(
        seed=seed,
        attempted=written,
        acked=written,
        effects=[row["id"] for row in rows],
        room=ROOM,
        unsent_when_full=left,
    )
    print(verdict)
    assert verdict.is_clean, str(verdict)
    assert left >= EVENTS // 2, "most of it had no room"


async def _is_there(taker: Consumer) -> bool:
    states = taker.states()
    return all(name in states and states[name].consumers for name in taker.queues)
