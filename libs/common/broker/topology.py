"""Exchanges and queues, derived from what a service consumes, declared by whoever uses them.

    events (topic) --type--> <consumer>.<type>  --broker limit--> <consumer>.<type>.parked
    retry.<n>s (topic) --#--> retry.<n>s --after n seconds, default exchange--> the queue named by the routing key

One retry queue per delay: a per-message TTL would wait behind a longer one at the head of the queue.
"""

from typing import Final

from aio_pika import ExchangeType
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractQueue

EVENTS_EXCHANGE: Final = "events"
RETRY_DELAYS_S: Final = (5, 30, 300)
MAX_QUEUE_LENGTH: Final = 100_000
DELIVERY_LIMIT: Final = 20
"""The broker's safety net only. A killed consumer raises the count of every message it had prefetched, innocent or
not, so what decides about parking is our own count of failures."""


def queue_name(consumer: str, event_type: str) -> str:
    return f"{consumer}.{event_type}"


def parked_queue(queue: str) -> str:
    return f"{queue}.parked"


def retry_exchange(delay_s: int) -> str:
    return f"retry.{delay_s}s"


async def declare_events_exchange(channel: AbstractChannel) -> AbstractExchange:
    return await channel.declare_exchange(EVENTS_EXCHANGE, ExchangeType.TOPIC, durable=True)


async def declare_retry_ladder(channel: AbstractChannel) -> None:
    for delay_s in RETRY_DELAYS_S:
        exchange = await channel.declare_exchange(retry_exchange(delay_s), ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(
            retry_exchange(delay_s),
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-message-ttl": delay_s * 1000,
                "x-dead-letter-exchange": "",
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-max-length": MAX_QUEUE_LENGTH,
            },
        )
        await queue.bind(exchange, routing_key="#")


async def declare_subscription(channel: AbstractChannel, *, consumer: str, event_type: str) -> AbstractQueue:
    """Declare the parked queue first: a message must never be dead-lettered to a queue that is not there yet."""
    name = queue_name(consumer, event_type)
    await channel.declare_queue(parked_queue(name), durable=True, arguments={"x-queue-type": "quorum"})
    queue = await channel.declare_queue(
        name,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": parked_queue(name),
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-max-length": MAX_QUEUE_LENGTH,
        },
    )
    await queue.bind(EVENTS_EXCHANGE, routing_key=event_type)
    return queue
