"""How much faster metering settles runs than a FastStream subscriber: `python -m bench.metering_consumer [runs]`.

Both drain the same number of finished runs (each under a hold) from the same queue with the same handler, and relay
what they tell of them, one after the other, each in a process of its own; the time is the database's, from the first
booking to the last. FastStream comes into `.local/bench` by uv, pinned, and is no dependency of the project.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import asyncpg

from bench.metering_service import service_process
from libs.common import database as db
from libs.common import outbox
from libs.common.broker import open_publisher, queue_name
from libs.common.events.agents import RunFinished
from libs.common.events.metering import ThresholdReached, UsageSettled
from libs.common.ids import new_id
from tests.builders import an_event
from tests.harness.database import TestDatabase, new_database
from tests.harness.patience import eventually
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place
from tests.harness.tasks import running

FASTSTREAM: Final = "faststream[rabbit]==0.7.8"
ROOT: Final = Path(__file__).parents[1]
PEER: Final = ROOT / ".local" / "bench" / "faststream"
ROUNDS: Final = 3
QUEUE: Final = queue_name("metering", RunFinished.type)


def make_environment() -> Path:
    python = PEER / "bin" / "python"
    uv = shutil.which("uv") or str(ROOT / ".local" / "tools" / "bin" / "uv")
    if not python.exists():
        subprocess.run((uv, "venv", "-q", str(PEER), "--python", sys.executable), check=True)
    subprocess.run((uv, "pip", "install", "-q", "--python", str(python), FASTSTREAM), check=True)
    return python


async def fill(place: Place, count: int) -> None:
    """Put runs into the queue, each with an open hold."""
    users = [new_id() for _ in range(100)]
    runs = [(new_id(), users[number % len(users)]) for number in range(count)]
    await place.database.execute(
        """
        INSERT INTO metering.holds (id, user_id, amounts, period_start, period_end, confirmed_at, expires_at)
        SELECT id, user_id, '{"runs": 1, "tokens": 700}', metering.period_start(now()), metering.period_end(now()),
            now(), now() + interval '1 day'
        FROM unnest($1::uuid[], $2::text[]) AS run(id, user_id)
        """,
        [run_id for run_id, _ in runs],
        [str(user_id) for _, user_id in runs],
    )
    await place.database.execute(
        """
        INSERT INTO usage_metrics (user_id, metric_type, held_value, period_start, period_end)
        SELECT user_id, key, sum(value::bigint), period_start, period_end
        FROM metering.holds, jsonb_each_text(amounts) GROUP BY user_id, key, period_start, period_end
        """
    )
    async with (
        db.connect(place.database.url("venture_agents"), application_name="bench") as agents,
        open_publisher(place.amqp_url("agents"), name="agents") as publisher,
    ):
        for start in range(0, count, 500):
            async with agents.transaction() as conn:
                await outbox.add(
                    conn, *(an_event(RunFinished, run_id=r, user_id=u) for r, u in runs[start : start + 500])
                )
        async with running(outbox.Relay(agents, publisher, source="agents").run):
            unsent = "SELECT count(*) = 0 FROM agents.outbox WHERE sent_at IS NULL"
            await eventually(lambda: place.database.fetchval(unsent), within_s=300, every_s=0.2)


@asynccontextmanager
async def faststream(python: Path, place: Place) -> AsyncGenerator[None, None]:
    environment = {
        "DATABASE_URL": place.database.url("venture_metering"),
        "AMQP_URL": place.amqp_url("metering"),
        "QUEUE": QUEUE,
        "PROJECT_PACKAGES": str(Path(asyncpg.__file__).parents[1]),
        "PYTHONPATH": str(ROOT),
    }
    process = await asyncio.create_subprocess_exec(
        str(python), "-m", "bench.metering_peer", cwd=ROOT, env={**os.environ, **environment}
    )
    try:
        yield
    finally:
        process.terminate()
        await process.wait()


async def rate(database: TestDatabase, count: int) -> float:
    """Runs a second from the first to the last booking."""

    async def is_done() -> bool:
        return await database.fetchval("SELECT count(*) FROM metering.booked_events") == count

    await eventually(is_done, within_s=600, every_s=0.25)
    if await database.fetchval("SELECT count(*) FROM metering.drift"):
        raise RuntimeError("counters and ledger differ")
    took_s = await database.fetchval(
        "SELECT extract(epoch FROM max(booked_at) - min(booked_at)) FROM metering.booked_events"
    )
    return count / float(took_s)


async def measure(servers: Servers, python: Path, count: int, *, ours: bool) -> float:
    async with new_database(servers) as database:
        place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
        async with service_process(servers, database, "worker"):
            await eventually(lambda: _is_declared(place), within_s=60, every_s=0.2)
        await listen(place)
        await fill(place, count)
        if ours:
            async with service_process(servers, database, "worker"):
                result = await rate(database, count)
        else:
            async with faststream(python, place):
                result = await rate(database, count)
        await place.delete_queues()
        return result


async def listen(place: Place) -> None:
    """Somebody takes what is told of settled runs, as the gateway and billing do."""
    import aio_pika  # noqa: PLC0415 - the driver is needed here alone

    connection = await aio_pika.connect(place.amqp_url("operator"))
    async with connection, connection.channel() as channel:
        ears = await channel.declare_queue("bench.settled", durable=True, arguments={"x-max-length": 1})
        for event in (UsageSettled, ThresholdReached):
            await ears.bind("events", routing_key=event.type)


async def _is_declared(place: Place) -> bool:
    import aio_pika  # noqa: PLC0415 - the driver is needed here alone
    from aio_pika.exceptions import ChannelNotFoundEntity  # noqa: PLC0415

    connection = await aio_pika.connect(place.amqp_url("operator"))
    async with connection, connection.channel() as channel:
        try:
            await channel.declare_queue(QUEUE, passive=True)
        except ChannelNotFoundEntity:
            return False
        return True


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    python = make_environment()
    ours: list[float] = []
    theirs: list[float] = []
    with start_servers(workers=1) as servers:
        for _ in range(ROUNDS):  # in turns, so that a busy moment meets both
            ours.append(asyncio.run(measure(servers, python, count, ours=True)))
            theirs.append(asyncio.run(measure(servers, python, count, ours=False)))
            print(f"ours {ours[-1]:.0f}/s, {FASTSTREAM} {theirs[-1]:.0f}/s; load {os.getloadavg()[0]:.1f}", flush=True)
    mine, other = statistics.median(ours), statistics.median(theirs)
    print(f"{count} runs, medians of {ROUNDS}: {mine:.0f}/s to {other:.0f}/s: {mine / other:.2f} times as many")


if __name__ == "__main__":
    main()
