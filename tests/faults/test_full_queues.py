"""A queue that is full says no to whoever sends: rows wait in the outbox, and come when there is room again."""

import random
import secrets
from collections.abc import Generator
from typing import Final

import pytest

from libs.common import database as db
from libs.common import outbox
from libs.common.broker import Subscription, topology
from libs.common.events.agents import RunStarted
from libs.common.ids import new_id
from tests.builders import an_event
from tests.faults.verdict import chance_of, judge
from tests.faults.worker import on_run_started
from tests.harness.flow import a_consumer, a_relay
from tests.harness.patience import eventually
from tests.harness.services import Place

ROOM: Final = 10
"""Messages, of up to 32 events each."""
EVENTS: Final = 3_000
STARTED: Final = Subscription(event=RunStarted, handler=on_run_started)


@pytest.fixture
def small_queues() -> Generator[None, None, None]:
    """Queues declared meanwhile take no more than this."""
    usual = topology.MAX_QUEUE_LENGTH
    topology.MAX_QUEUE_LENGTH = ROOM  # pyright: ignore[reportConstantRedefinition]
    yield
    topology.MAX_QUEUE_LENGTH = usual  # pyright: ignore[reportConstantRedefinition]


async def write_events(source: db.Database, chance: random.Random) -> list[str]:
    written: list[str] = []
    while len(written) < EVENTS:
        count = min(chance.randint(20, 80), EVENTS - len(written))
        events = [an_event(RunStarted, run_id=new_id()) for _ in range(count)]
        async with source.transaction() as conn:
            await outbox.add(conn, *events)
        written += [str(event.run_id) for event in events]
    return written


@pytest.mark.usefixtures("small_queues")
async def test_what_a_full_queue_does_not_take_waits_and_is_not_lost(
    place: Place, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--seed") or secrets.randbelow(1_000_000)
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

    async with a_consumer(place, "metering", STARTED):  # makes the queue, and goes away again
        pass
    async with a_relay(place, "agents") as source:
        written = await write_events(source, chance_of(seed))
        await eventually(is_refused, within_s=30)
        left = await unsent()
        async with a_consumer(place, "metering", STARTED):
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
