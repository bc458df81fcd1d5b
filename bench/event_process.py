"""Our side of `bench.event_peers`: `produce <n>` writes outbox rows and relays them, `consume` runs the consumer."""

import asyncio
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from uuid import UUID

import uvloop

from libs.common import database as db
from libs.common import outbox
from libs.common.broker import Consumer, Subscription, open_publisher
from libs.common.database import Connection
from libs.common.events.agents import RunStarted
from libs.common.logs import configure_logging
from tests.builders import an_event
from tests.harness.tasks import running

USERS: Final = [UUID(int=number) for number in range(100)]


async def on_run_started(event: RunStarted, conn: Connection) -> None:
    await conn.execute(
        """
        INSERT INTO metering.peer_counts AS counts (user_id, handled) VALUES ($1, 1)
        ON CONFLICT (user_id) DO UPDATE SET handled = counts.handled + 1, last_at = clock_timestamp()
        """,
        event.user_id,
    )


async def on_runs_started(events: Sequence[RunStarted], conn: Connection) -> None:
    """The same for many at once, in one statement."""
    counts = Counter(event.user_id for event in events)
    await conn.execute(
        """
        INSERT INTO metering.peer_counts AS counts (user_id, handled)
        SELECT user_id, handled FROM unnest($1::uuid[], $2::bigint[]) AS counted(user_id, handled) ORDER BY user_id
        ON CONFLICT (user_id) DO UPDATE SET
            handled = counts.handled + excluded.handled, last_at = clock_timestamp()
        """,
        list(counts),
        list(counts.values()),
    )


async def consume() -> None:
    async with (
        db.connect(os.environ["METERING_URL"], application_name="metering") as database,
        open_publisher(os.environ["METERING_AMQP_URL"], name="metering") as publisher,
    ):
        consumer = Consumer(
            os.environ["METERING_AMQP_URL"],
            service="metering",
            subscriptions=[
                Subscription(
                    event=RunStarted,
                    handler=on_run_started,
                    many=on_runs_started if os.environ["HANDLED"] == "many" else None,
                )
            ],
            database=database,
            publisher=publisher,
        )
        await consumer.run()


async def produce(count: int) -> None:
    async with (
        db.connect(os.environ["AGENTS_URL"], application_name="agents") as database,
        open_publisher(os.environ["AGENTS_AMQP_URL"], name="agents") as publisher,
        running(outbox.Relay(database, publisher, source="agents").run),
    ):
        for start in range(0, count, 1_000):
            users = [USERS[number % len(USERS)] for number in range(start, min(start + 1_000, count))]
            async with database.transaction() as conn:
                await outbox.add(conn, *(an_event(RunStarted, user_id=user_id) for user_id in users))
        while True:
            async with database.transaction() as conn:
                if not await conn.fetchval("SELECT count(*) FROM outbox WHERE sent_at IS NULL"):
                    break
            await asyncio.sleep(0.02)


def main() -> None:
    # As in production, each message's line of log is made and written.
    said = sys.stdout
    sys.stdout = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115 - for the life of the process
    configure_logging(service="bench", level="INFO")
    if sys.argv[1] == "consume":
        uvloop.run(consume())
    else:
        began = time.process_time()
        uvloop.run(produce(int(sys.argv[2])))
        print(time.process_time() - began, file=said)


if __name__ == "__main__":
    main()
