"""Events as Celery tasks, acknowledged late. Consumed by `celery worker` with a process for each core."""

import os
import sys
import time
import uuid

import psycopg
from celery import Celery

CLAIM = "INSERT INTO peer_inbox (event_id) VALUES (%s) ON CONFLICT DO NOTHING RETURNING event_id"
COUNT = """
    INSERT INTO peer_counts AS counts (user_id, handled) VALUES (%s, 1)
    ON CONFLICT (user_id) DO UPDATE SET handled = counts.handled + 1, last_at = clock_timestamp()
"""
app = Celery("worker", broker=os.environ["AMQP_URL"])
app.conf.update(
    task_acks_late=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=50,
    broker_transport_options={"confirm_publish": True},
)
own: dict[str, psycopg.Connection] = {}


@app.task(name="handle")
def handle(event_id: str, user_id: str) -> None:
    if "conn" not in own:
        own["conn"] = psycopg.connect(os.environ["DATABASE_URL"])
    conn = own["conn"]
    with conn.transaction():
        if conn.execute(CLAIM, (event_id,)).fetchone():
            conn.execute(COUNT, (user_id,))


if __name__ == "__main__" and len(sys.argv) > 1 and sys.argv[1] == "produce":
    began = time.process_time()
    users = [str(uuid.UUID(int=number)) for number in range(100)]
    for number in range(int(sys.argv[2])):
        handle.delay(str(uuid.uuid4()), users[number % 100])
    print(time.process_time() - began)
