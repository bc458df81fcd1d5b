"""The limit: bare aio-pika, up to 500 messages in one transaction, one acknowledgement for all of them.

No retries, no parking, no traces, no telling of one bad message from the rest. It runs in the project's environment.
"""

import asyncio
import os
import sys
import time
import uuid

import aio_pika
import asyncpg
import orjson
import uvloop

BATCH = 500
QUEUE = "peer-raw"
CLAIM = """
    INSERT INTO peer_inbox (event_id) SELECT * FROM unnest($1::uuid[]) ON CONFLICT DO NOTHING RETURNING event_id
"""
COUNT = """
    INSERT INTO peer_counts AS counts (user_id, handled)
    SELECT user_id, count(*) FROM unnest($1::uuid[]) AS handled(user_id) GROUP BY user_id
    ON CONFLICT (user_id) DO UPDATE SET handled = counts.handled + excluded.handled, last_at = clock_timestamp()
"""


async def consume() -> None:
    db = await asyncpg.connect(os.environ["DATABASE_URL"])
    connection = await aio_pika.connect(os.environ["AMQP_URL"])
    channel = await connection.channel()
    await channel.set_qos(prefetch_count=2 * BATCH)
    queue = await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    waiting: asyncio.Queue[aio_pika.abc.AbstractIncomingMessage] = asyncio.Queue()
    await queue.consume(waiting.put)
    while True:
        batch = [await waiting.get()]
        while len(batch) < BATCH and not waiting.empty():
            batch.append(waiting.get_nowait())
        events = {event["event_id"]: event["user_id"] for event in (orjson.loads(one.body) for one in batch)}
        async with db.transaction():
            claimed = await db.fetch(CLAIM, list(events))
            await db.execute(COUNT, [events[str(row["event_id"])] for row in claimed])
        await batch[-1].ack(multiple=True)


async def produce(count: int) -> None:
    began = time.process_time()
    connection = await aio_pika.connect(os.environ["AMQP_URL"])
    channel = await connection.channel(publisher_confirms=True)
    await channel.declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    users = [str(uuid.UUID(int=number)) for number in range(100)]
    for start in range(0, count, 200):
        messages = [
            aio_pika.Message(
                orjson.dumps({"event_id": str(uuid.uuid4()), "user_id": users[number % 100]}),
                delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            )
            for number in range(start, min(start + 200, count))
        ]
        await asyncio.gather(*(channel.default_exchange.publish(message, QUEUE) for message in messages))
    await connection.close()
    print(time.process_time() - began)


if __name__ == "__main__":
    uvloop.run(consume() if sys.argv[1] == "consume" else produce(int(sys.argv[2])))
