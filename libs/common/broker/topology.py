"""Exchanges and queues, derived from what a service consumes. All but `events` are one service's own.

    events (topic) --type--> <consumer>.<type>  --broker limit--> <consumer>.<type>.parked
    <consumer>.retry.<n>s (topic) --#--> <consumer>.retry.<n>s --after n seconds--> <consumer>.home
    <consumer>.home (direct) --queue name--> the consumer's queues, and the parked ones behind them

`events` is there from the broker's first moment; no service may declare or delete it. A home of one's own instead of
the default exchange, and a ladder of one's own instead of a shared one: through either of those every service could
send to every queue, and so forge what it may not publish. One retry queue per delay: a per-message TTL would wait
behind a longer one at the head of the queue.
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


def retry_exchange(consumer: str, delay_s: int) -> str:
    return f"{consumer}.retry.{delay_s}s"


def home_exchange(consumer: str) -> str:
    return f"{consumer}.home"


async def find_events_exchange(channel: AbstractChannel) -> AbstractExchange:
    """Raises what the driver raises for a broker that was set up without our definitions."""
    return await channel.declare_exchange(EVENTS_EXCHANGE, passive=True)


async def declare_retry_ladder(channel: AbstractChannel, *, consumer: str) -> None:
    await channel.declare_exchange(home_exchange(consumer), ExchangeType.DIRECT, durable=True)
    for delay_s in RETRY_DELAYS_S:
        rung = retry_exchange(consumer, delay_s)
        exchange = await channel.declare_exchange(rung, ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue(
            rung,
            durable=True,
            arguments={
                "x-queue-type": "quorum",
                "x-message-ttl": delay_s * 1000,
                "x-dead-letter-exchange": home_exchange(consumer),
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
                "x-max-length": MAX_QUEUE_LENGTH,
            },
        )
        await queue.bind(exchange, routing_key="#")


async def declare_subscription(channel: AbstractChannel, *, consumer: str, event_type: str) -> AbstractQueue:
    """Declare the parked queue first: a message must never be dead-lettered to a queue that is not there yet."""
    name, home = queue_name(consumer, event_type), home_exchange(consumer)
    await channel.declare_exchange(home, ExchangeType.DIRECT, durable=True)
    parked = await channel.declare_queue(parked_queue(name), durable=True, arguments={"x-queue-type": "quorum"})
    await parked.bind(home, routing_key=parked.name)
    queue = await channel.declare_queue(
        name,
        durable=True,
        arguments={
            "x-queue-type": "quorum",
            "x-delivery-limit": DELIVERY_LIMIT,
            "x-dead-letter-exchange": home,
            "x-dead-letter-routing-key": parked_queue(name),
            "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish",
            "x-max-length": MAX_QUEUE_LENGTH,
        },
    )
    await queue.bind(home, routing_key=name)
    await queue.bind(EVENTS_EXCHANGE, routing_key=event_type)
    return queue
