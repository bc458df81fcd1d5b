"""Events as dramatiq messages, confirmed by the broker, one transaction each. Consumed by the `dramatiq` command."""

import os
import sys
import threading
import time
import uuid

import dramatiq
import psycopg
from dramatiq.brokers.rabbitmq import RabbitmqBroker

CLAIM = "INSERT INTO peer_inbox (event_id) VALUES (%s) ON CONFLICT DO NOTHING RETURNING event_id"
COUNT = """
    INSERT INTO peer_counts AS counts (user_id, handled) VALUES (%s, 1)
    ON CONFLICT (user_id) DO UPDATE SET handled = counts.handled + 1, last_at = clock_timestamp()
"""
dramatiq.set_broker(RabbitmqBroker(url=os.environ["AMQP_URL"], confirm_delivery=True))
own = threading.local()


@dramatiq.actor
def handle(event_id: str, user_id: str) -> None:
    if not hasattr(own, "conn"):
        own.conn = psycopg.connect(os.environ["DATABASE_URL"])
    with own.conn.transaction():
        if own.conn.execute(CLAIM, (event_id,)).fetchone():
            own.conn.execute(COUNT, (user_id,))


if __name__ == "__main__" and len(sys.argv) > 1 and sys.argv[1] == "produce":
    began = time.process_time()
    users = [str(uuid.UUID(int=number)) for number in range(100)]
    for number in range(int(sys.argv[2])):
        handle.send(str(uuid.uuid4()), users[number % 100])
    print(time.process_time() - began)
