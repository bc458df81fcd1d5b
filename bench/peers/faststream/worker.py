"""Events in FastStream: the message acknowledged after the one transaction that claims and counts it."""

import asyncio
import os
import sys
import time
import uuid

import asyncpg
import uvloop
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

CLAIM = "INSERT INTO peer_inbox (event_id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING event_id"
COUNT = """
    INSERT INTO peer_counts AS counts (user_id, handled) VALUES ($1, 1)
    ON CONFLICT (user_id) DO UPDATE SET handled = counts.handled + 1, last_at = clock_timestamp()
"""
QUEUE = RabbitQueue("peer-faststream", durable=True)
broker = RabbitBroker(os.environ["AMQP_URL"], default_channel=Channel(prefetch_count=100), logger=None)


async def consume() -> None:
    pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=8, max_size=8)

    @broker.subscriber(QUEUE, ack_policy=AckPolicy.NACK_ON_ERROR)
    async def handle(event: dict[str, str]) -> None:
        async with pool.acquire() as conn, conn.transaction():
            if await conn.fetchval(CLAIM, uuid.UUID(event["event_id"])):
                await conn.execute(COUNT, uuid.UUID(event["user_id"]))

    await FastStream(broker, logger=None).run()


async def produce(count: int) -> None:
    began = time.process_time()
    async with broker:
        await broker.declare_queue(QUEUE)
        users = [str(uuid.UUID(int=number)) for number in range(100)]
        for start in range(0, count, 100):
            events = [
                {"event_id": str(uuid.uuid4()), "user_id": users[number % 100]}
                for number in range(start, min(start + 100, count))
            ]
            await asyncio.gather(*(broker.publish(event, QUEUE, persist=True) for event in events))
    print(time.process_time() - began)


if __name__ == "__main__":
    uvloop.run(consume() if sys.argv[1] == "consume" else produce(int(sys.argv[2])))
