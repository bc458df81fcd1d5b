"""Events counted by processes that are killed, while duplicates are sent and a queue loses its binding."""

import asyncio
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

import aio_pika
import orjson

from libs.common import database as db
from libs.common import outbox
from libs.common.broker import queue_name
from libs.common.events.agents import RunStarted
from libs.common.ids import new_id
from ops.home import ROOT
from tests.builders import an_event
from tests.faults.verdict import Verdict, chance_of, judge
from tests.harness.patience import eventually
from tests.harness.services import Place

QUEUE: Final = queue_name("metering", RunStarted.type)
BURST: Final = 60
WORKERS: Final = 2


class Crew:
    """The processes of the scenario; one that is killed is replaced at once."""

    def __init__(self, place: Place, control: str) -> None:
        self._control = control
        self._addresses = {
            "source": place.database.url("venture_agents"),
            "sink": place.database.url("venture_metering"),
            "amqp": place.amqp_url("operator"),
        }
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self, count: int) -> None:
        for _ in range(count):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.faults.worker", self._control, cwd=ROOT, stdin=asyncio.subprocess.PIPE
            )
            if process.stdin is None:
                raise RuntimeError("the worker has no standard input")
            process.stdin.write(orjson.dumps(self._addresses) + b"\n")
            await process.stdin.drain()
            self._processes.append(process)

    async def kill(self, number: int) -> None:
        process = self._processes.pop(number % len(self._processes))
        process.kill()
        await process.wait()
        await self.start(1)

    async def end(self) -> None:
        for process in self._processes:
            process.kill()
            await process.wait()


@asynccontextmanager
async def crew(place: Place, control: str) -> AsyncGenerator[Crew, None]:
    await place.database.execute("CREATE TABLE IF NOT EXISTS metering.fault_effects (run_id uuid NOT NULL)")
    await place.database.execute("TRUNCATE metering.fault_effects, agents.outbox")
    await place.database.execute("GRANT SELECT, INSERT ON metering.fault_effects TO venture_metering")
    await place.delete_queues()
    hands = Crew(place, control)
    await hands.start(WORKERS)
    try:
        yield hands
    finally:
        await hands.end()


async def count_under_kills(place: Place, *, seed: int, kills: int, control: str = "") -> Verdict:
    """A burst of events, a kill in its midst, and again; some events sent twice, some while no queue is bound."""
    chance = chance_of(seed)
    written: list[str] = []
    async with (
        crew(place, control) as hands,
        db.connect(place.database.url("venture_agents"), application_name="fault-producer") as producer,
    ):
        await eventually(lambda: _is_consumed(place), within_s=30)
        for number in range(kills):
            if number == kills // 2:
                await _bind(place, bound=False)
            written += await _write_burst(producer)
            await asyncio.sleep(chance.uniform(0, 0.15))
            await hands.kill(chance.randrange(WORKERS))
            if number == kills // 2:
                await asyncio.sleep(1)
                await _bind(place, bound=True)
            await place.database.execute(
                "UPDATE agents.outbox SET sent_at = NULL, claimed_until = '-infinity' WHERE random() < 0.1"
            )
        await _quiet(place, count=len(written))
    rows = await place.database.fetch("SELECT run_id::text FROM metering.fault_effects")
    effects = [row["run_id"] for row in rows]
    return judge(seed=seed, attempted=written, acked=written, effects=effects, kills=kills, control=control or "none")


async def _write_burst(producer: db.Database) -> list[str]:
    """Two transactions that overlap: the one that began first, and so has the smaller ids, commits last."""
    early, late = ([an_event(RunStarted, run_id=new_id()) for _ in range(BURST // 2)] for _ in range(2))
    async with producer.transaction() as slow:
        await outbox.add(slow, *early)
        async with producer.transaction() as quick:
            await outbox.add(quick, *late)
        await asyncio.sleep(0.2)
    return [str(event.run_id) for event in (*early, *late)]


async def _bind(place: Place, *, bound: bool) -> None:
    connection = await aio_pika.connect(place.amqp_url("operator"))
    async with connection, connection.channel() as channel:
        queue = await channel.get_queue(QUEUE, ensure=False)
        change = queue.bind if bound else queue.unbind
        await change("events", routing_key=RunStarted.type)


async def _is_consumed(place: Place) -> bool:
    connection = await aio_pika.connect(place.amqp_url("operator"))
    async with connection, connection.channel() as channel:
        try:
            queue = await channel.declare_queue(QUEUE, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return (queue.declaration_result.consumer_count or 0) >= WORKERS


async def _quiet(place: Place, *, count: int) -> None:
    """Until every event has had its effect and nothing is unsent, or nothing has changed for a while."""
    still_since, last = asyncio.get_running_loop().time(), (-1, -1)
    while asyncio.get_running_loop().time() - still_since < 12:
        row = await place.database.fetch(
            """
            SELECT (SELECT count(DISTINCT run_id) FROM metering.fault_effects) AS effects,
                   (SELECT count(*) FROM agents.outbox WHERE sent_at IS NULL) AS unsent
            """
        )
        now = (row[0]["effects"], row[0]["unsent"])
        if now == (count, 0):
            await asyncio.sleep(0.5)  # what comes twice comes now
            return
        if now != last:
            still_since, last = asyncio.get_running_loop().time(), now
        await asyncio.sleep(0.1)
