"""Events published, consumed, deduplicated and counted a second, beside task queues and brokers' frameworks.

`make bench-events`. Each event is one transaction to its user: its id is claimed and its user's count goes up, or
neither. Peers do this as their users write it, one transaction a message; raw aio-pika with five hundred messages in
one transaction is the limit. Ours includes the outbox: events are rows before they are messages. The servers' own
processor time counts for nobody. Rates are the database's, from the first counted event to the last.
"""

import asyncio
import os
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import uvloop

from bench.frame import CPU, OURS, RSS, Column, Contender, Figures, Report, alternate, at_least, at_most
from bench.peer_environments import PEERS, ROOT, peer_python, pinned
from bench.processes import running, spent
from bench.report import publish
from libs.common.broker import queue_name
from libs.common.events.agents import RunStarted
from tests.harness.database import TestDatabase, new_database
from tests.harness.patience import eventually
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place

SCALE: Final = float(os.environ.get("BENCH_SCALE", "1"))
RAW: Final = "aio-pika, 500 a transaction"
EACH: Final = f"{OURS}, one by one"
FRAMEWORKS: Final = ("FastStream", "taskiq", "dramatiq", "Celery")
THROUGH: Final = Column(name="per_s", title="end to end a second")
DRAINED: Final = Column(name="drained_per_s", title="draining a second")
_TABLES: Final = """
CREATE TABLE {schema}.peer_counts (
    user_id uuid PRIMARY KEY, handled bigint NOT NULL,
    first_at timestamptz NOT NULL DEFAULT clock_timestamp(), last_at timestamptz NOT NULL DEFAULT clock_timestamp()
)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """`produce` gets the number of events as its last argument and prints the processor time it took."""

    name: str
    produce: Sequence[str | Path]
    consume: Sequence[str | Path]
    environment: Mapping[str, str]
    folder: Path
    database: TestDatabase
    counts: str
    events: int
    is_drained: bool = False

    def contender(self) -> Contender:
        return Contender(name=self.name, measure=self.measure)

    async def measure(self) -> Figures:
        count = max(int(self.events * SCALE), 500)
        figures = await self.through(count)
        if self.is_drained:
            figures["drained_per_s"] = await self.drained(count)
        return figures

    async def through(self, count: int) -> dict[str, float]:
        """Everything at once, from a consumer that has been at work already."""
        async with self._consumer() as pid:
            await self._produce(200)
            await self._counted(200)
            await self._forget()
            before = spent(pid)
            produced_s = await self._produce(count)
            await self._counted(count)
            after = spent(pid)
            return {
                "per_s": await self._rate(count),
                "cpu_s_per_1000": (after.cpu_s - before.cpu_s + produced_s) / count * 1000,
                "rss_mb": after.rss_mb,
            }

    async def drained(self, count: int) -> float:
        """The consumer alone, from a queue that is full."""
        await self._forget()
        await self._produce(count)
        async with self._consumer():
            await self._counted(count)
            return await self._rate(count)

    @asynccontextmanager
    async def _consumer(self) -> AsyncGenerator[int, None]:
        await self._forget()
        name = f"events-{self.name.partition(',')[0].replace(' ', '-').lower()}"
        async with running(self.consume, environment=self.environment, folder=self.folder, name=name) as pid:
            yield pid

    async def _produce(self, count: int) -> float:
        process = await asyncio.create_subprocess_exec(
            *map(str, self.produce),
            str(count),
            env={**os.environ, **self.environment},
            cwd=self.folder,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        said, complained = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"{self.name} could not produce: {complained.decode()[-2_000:]}")
        return float(said.split()[-1])

    async def _counted(self, count: int) -> None:
        async def reached() -> bool:
            return (await self.database.fetchval(f"SELECT sum(handled) FROM {self.counts}") or 0) >= count  # noqa: S608

        await eventually(reached, within_s=120, every_s=0.05)

    async def _rate(self, count: int) -> float:
        row = (
            await self.database.fetch(
                f"SELECT sum(handled) AS handled, extract(epoch FROM max(last_at) - min(first_at)) AS s "  # noqa: S608
                f"FROM {self.counts}"
            )
        )[0]
        if row["handled"] != count:
            raise RuntimeError(f"{self.name} counted {row['handled']} of {count} events")
        return count / float(row["s"])

    async def _forget(self) -> None:
        await self.database.execute(f"TRUNCATE {self.counts}")


@asynccontextmanager
async def ours(servers: Servers, name: str) -> AsyncGenerator[Worker, None]:
    async with new_database(servers) as database:
        place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
        await database.execute(_TABLES.format(schema="metering"))
        await database.execute("GRANT SELECT, INSERT, UPDATE ON metering.peer_counts TO venture_metering")
        environment = {
            "METERING_URL": database.url("venture_metering"),
            "AGENTS_URL": database.url("venture_agents"),
            "METERING_AMQP_URL": place.amqp_url("metering"),
            "AGENTS_AMQP_URL": place.amqp_url("agents"),
            "HANDLED": "each" if name == EACH else "many",
        }
        program = (sys.executable, "-m", "bench.event_process")
        worker = Worker(
            name=name,
            produce=(*program, "produce"),
            consume=(*program, "consume"),
            environment=environment,
            folder=ROOT,
            database=database,
            counts="metering.peer_counts",
            events=12_000 if name == OURS else 6_000,
            is_drained=name == OURS,
        )
        await _declare_ours(worker, place)
        yield worker


async def _declare_ours(worker: Worker, place: Place) -> None:
    """The queue is its consumer's to declare, and a message sent before that reaches nobody."""
    import aio_pika  # noqa: PLC0415 - the driver is needed here alone
    from aio_pika.exceptions import ChannelNotFoundEntity  # noqa: PLC0415

    async def is_declared() -> bool:
        connection = await aio_pika.connect(place.amqp_url("operator"))
        async with connection, connection.channel() as channel:
            try:
                await channel.declare_queue(queue_name("metering", RunStarted.type), passive=True)
            except ChannelNotFoundEntity:
                return False
            return True

    async with running(worker.consume, environment=worker.environment, folder=worker.folder, name="events-declare"):
        await eventually(is_declared, within_s=30, every_s=0.2)


@asynccontextmanager
async def peer(servers: Servers, name: str) -> AsyncGenerator[Worker, None]:
    is_raw = name == RAW
    short = "raw" if is_raw else name.lower()
    python = Path(sys.executable) if is_raw else peer_python(short)
    folder = PEERS / short
    consume: Mapping[str, Sequence[str | Path]] = {
        "taskiq": (python.parent / "taskiq", "worker", "worker:broker", "--ack-type", "when_executed"),
        "dramatiq": (python.parent / "dramatiq", "worker"),
        "celery": (python.parent / "celery", "-A", "worker", "worker", "--concurrency", str(os.cpu_count())),
    }
    async with new_database(servers) as database:
        await database.execute(_TABLES.format(schema="public"))
        await database.execute("CREATE TABLE peer_inbox (event_id uuid PRIMARY KEY)")
        yield Worker(
            name=name,
            produce=(python, "worker.py", "produce"),
            consume=consume.get(short, (python, "worker.py", "consume")),
            environment={
                "DATABASE_URL": database.superuser_url,
                "AMQP_URL": f"{servers.amqp_urls['operator']}/{servers.vhosts[0]}",
            },
            folder=folder,
            database=database,
            counts="public.peer_counts",
            events=12_000 if is_raw else 1_500,
            is_drained=is_raw,
        )


@asynccontextmanager
async def workers(servers: Servers, names: Sequence[str]) -> AsyncGenerator[list[Worker], None]:
    if not names:
        yield []
        return
    first = ours(servers, names[0]) if names[0].startswith(OURS) else peer(servers, names[0])
    async with first as worker, workers(servers, names[1:]) as others:
        yield [worker, *others]


async def compare(servers: Servers) -> Report:
    async with workers(servers, [OURS, RAW, EACH, *FRAMEWORKS]) as listed:
        results = await alternate([it.contender() for it in listed])
    best = max(FRAMEWORKS, key=lambda name: results.median(name, "per_s"))
    return Report(
        name="events",
        title="Events: published, consumed, deduplicated and counted",
        how="Every event claims its id and moves its user's count in one transaction, acknowledged after the commit; "
        "durable queues, persistent messages, a hundred users, producer and consumer in processes of their own. "
        "Our handler takes what has come at once, the form `many` of a subscription; one by one it is called for each "
        "event. Frameworks as their users write them, with as many worker processes as they start by themselves.",
        columns=[THROUGH, DRAINED, CPU, RSS],
        results=results,
        targets=[
            at_least(f"at least 3 times the best framework ({best})", results.ratio("per_s", to=best), 3),
            at_least("at least 60 % of raw, end to end", results.ratio("per_s", to=RAW), 0.6),
            at_least("at least 60 % of raw, draining", results.ratio("drained_per_s", to=RAW), 0.6),
            at_most("CPU seconds per 1,000 events below 0.4", results.median(OURS, "cpu_s_per_1000"), 0.4),
        ],
        notes=[
            ", ".join(
                f"{package} {pinned(package, package)}" for package in ("faststream", "taskiq", "dramatiq", "celery")
            )
        ],
    )


def main() -> None:
    with start_servers(workers=1) as servers:
        publish(uvloop.run(compare(servers)))


if __name__ == "__main__":
    main()
