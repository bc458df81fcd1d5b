"""Another program that reports usage during a soak, and reports some of it twice."""

import asyncio
from collections import deque
from typing import Any, Final

import orjson

from libs.common.ids import new_id
from tests.faults.soak.books import BrokenPromise
from tests.faults.soak.people import People

METER: Final = "api_calls"
SOURCE: Final = "soak"
KIND: Final = "usage event"
_MOST: Final = 10
_REMEMBERED: Final = 500


async def report_usage(people: People, service_key: str) -> None:
    door, past = people.door, deque[dict[str, Any]](maxlen=_REMEMBERED)
    while not people.over.is_set():
        await asyncio.sleep(door.chance.uniform(0.3, 0.9))
        if not people.everybody:
            continue
        new = [_event(door.chance.choice(people.everybody)) for _ in range(door.chance.randint(1, _MOST))]
        names = [event["id"] for event in new]
        door.books.attempt(KIND, names)
        repeated = [door.chance.choice(past)] if past and door.chance.random() < 0.3 else []
        door.books.duplicates += len(repeated)
        answer = await door.surely(
            "POST",
            "/v1/usage/events",
            content=orjson.dumps([*new, *repeated]),
            headers={
                "Authorization": f"Bearer {service_key}",
                "Content-Type": "application/cloudevents-batch+json",
            },
        )
        receipt = answer.json()
        if receipt["rejected"] or receipt["accepted"] + receipt["duplicates"] != len(new) + len(repeated):
            raise BrokenPromise(f"usage events were answered with {receipt}")
        door.books.accept(KIND, names)
        past.extend(new)


def _event(user_id: str) -> dict[str, Any]:
    data = {"user_id": user_id, "metric": METER, "endpoint": "/plan", "status": "ok", "project": new_id().hex[-2:]}
    return {"specversion": "1.0", "id": str(new_id()), "source": SOURCE, "type": "call", "data": data}
