"""Events as taskiq tasks, acknowledged when they are executed. Consumed by `taskiq worker`."""

import asyncio
import os
import sys
import time
import uuid

import asyncpg
import uvloop
from taskiq import TaskiqEvents, TaskiqState
from taskiq_aio_pika import AioPikaBroker

CLAIM = "INSERT INTO peer_inbox (event_id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING event_id"
COUNT = """
    INSERT INTO peer_counts AS counts (user_id, handled) VALUES ($1, 1)
    ON CONFLICT (user_id) DO UPDATE SET handled = counts.handled + 1, last_at = clock_timestamp()
"""
broker = AioPikaBroker(os.environ["AMQP_URL"], qos=100)


@broker.on_event(TaskiqEvents.WORKER_STARTUP)
async def connect(state: TaskiqState) -> None:
    state.pool = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=8, max_size=8)


@broker.task
async def handle(event_id: str, user_id: str) -> None:
    async with broker.state.pool.acquire() as conn, conn.transaction():
        if await conn.fetchval(CLAIM, uuid.UUID(event_id)):
            await conn.execute(COUNT, uuid.UUID(user_id))


async def produce(count: int) -> None:
    began = time.process_time()
    await broker.startup()
    users = [str(uuid.UUID(int=number)) for number in range(100)]
    for start in range(0, count, 100):
        numbers = range(start, min(start + 100, count))
        await asyncio.gather(*(handle.kiq(str(uuid.uuid4()), users[number % 100]) for number in numbers))
    await broker.shutdown()
    print(time.process_time() - began)


if __name__ == "__main__":
    uvloop.run(produce(int(sys.argv[2])))
