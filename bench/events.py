"""How many events a second go from row to counted effect: `python -m bench.events [events]`.

The library's own path on real servers: outbox rows, relay, broker, inbox and the handler's row, over a hundred users.
First the consumer alone on a queue that is full (draining), then everything at once (end to end), all in this one
process, which shares the machine with the servers.
"""

import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, redirect_stdout
from pathlib import Path
from typing import Final

import uvloop

from libs.common import database as db
from libs.common import outbox
from libs.common.broker import Consumer, Subscription, open_publisher
from libs.common.database import Connection, Database
from libs.common.events.agents import RunStarted
from libs.common.ids import new_id
from libs.common.logs import configure_logging
from tests.builders import an_event
from tests.harness.database import new_database
from tests.harness.patience import eventually
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place
from tests.harness.tasks import running

USERS: Final = [new_id() for _ in range(100)]
ROUNDS: Final = 3


async def on_run_started(event: RunStarted, conn: Connection) -> None:
    await conn.execute(
        """
        INSERT INTO metering.bench_counts AS counts (user_id, handled) VALUES ($1, 1)
        ON CONFLICT (user_id) DO UPDATE SET handled = counts.handled + 1
        """,
        event.user_id,
    )


@asynccontextmanager
async def open_ends(place: Place) -> AsyncGenerator[tuple[Database, Consumer, outbox.Relay], None]:
    """The agents' database, a consumer of metering's, and the agents' relay; neither of the two runs yet."""
    async with AsyncExitStack() as stack:
        agents, metering = [
            await stack.enter_async_context(
                db.connect(place.database.url(f"venture_{service}"), application_name=service)
            )
            for service in ("agents", "metering")
        ]
        sender, publisher = [
            await stack.enter_async_context(open_publisher(place.amqp_url(service), name=service))
            for service in ("agents", "metering")
        ]
        consumer = Consumer(
            place.amqp_url("metering"),
            service="metering",
            subscriptions=[Subscription(event=RunStarted, handler=on_run_started)],
            database=metering,
            publisher=publisher,
        )
        yield agents, consumer, outbox.Relay(agents, sender, source="agents")


async def write(agents: Database, count: int) -> None:
    for start in range(0, count, 1_000):
        async with agents.transaction() as conn:
            users = [USERS[number % len(USERS)] for number in range(start, min(start + 1_000, count))]
            await outbox.add(conn, *(an_event(RunStarted, user_id=user_id) for user_id in users))


async def counted(place: Place, count: int) -> None:
    async def reached() -> bool:
        return await place.database.fetchval("SELECT sum(handled) FROM metering.bench_counts") == count

    await eventually(reached, within_s=300)


async def measure(servers: Servers, count: int) -> dict[str, float]:
    async with new_database(servers) as database:
        place = Place(database=database, vhost=servers.vhosts[0], redis_number=0)
        await database.execute("CREATE TABLE metering.bench_counts (user_id uuid PRIMARY KEY, handled bigint NOT NULL)")
        await database.execute("GRANT SELECT, INSERT, UPDATE ON metering.bench_counts TO venture_metering")
        async with open_ends(place) as (agents, consumer, relay):
            async with running(consumer.run):
                await eventually(lambda: _declared(consumer))
            await write(agents, count)
            async with running(relay.run):
                await eventually(lambda: _all_sent(place))
            started, used = time.perf_counter(), time.process_time()
            async with running(consumer.run):
                await counted(place, count)
                drained_s, drained_cpu_s = time.perf_counter() - started, time.process_time() - used
                await write(agents, count)
                started, used = time.perf_counter(), time.process_time()
                async with running(relay.run):
                    await counted(place, count * 2)
                    through_s, through_cpu_s = time.perf_counter() - started, time.process_time() - used
        await place.delete_queues()
    return {
        "draining/s": count / drained_s,
        "draining cpu s/1000": drained_cpu_s / count * 1000,
        "end to end/s": count / through_s,
        "end to end cpu s/1000": through_cpu_s / count * 1000,
    }


async def _declared(consumer: Consumer) -> bool:
    return bool(consumer.states())


async def _all_sent(place: Place) -> bool:
    return await place.database.fetchval("SELECT count(*) FROM agents.outbox WHERE sent_at IS NULL") == 0


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, start_servers(workers=1) as servers:
        # As in production, each message's line of log is made and written.
        with redirect_stdout(nowhere):
            configure_logging(service="bench", level="INFO")
        rounds = [uvloop.run(measure(servers, count)) for _ in range(ROUNDS)]
    figures = ", ".join(f"{name} {statistics.median(it[name] for it in rounds):.3g}" for name in rounds[0])
    print(f"{count} events, medians of {ROUNDS}: {figures}; load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
