"""A broken way to PostgreSQL, RabbitMQ or Redis bounds every answer, loses nothing, and heals by itself."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Final

import httpx
import pytest

from libs.common.ids import new_id
from tests.faults.edges import Edge, open_house_behind_proxies
from tests.harness.fault_proxy import Fault, FaultProxy
from tests.harness.house import House, Person
from tests.harness.patience import eventually
from tests.harness.services import Place

ANSWER_WITHIN_S: Final = 5.0
RECOVER_WITHIN_S: Final = 15.0
FAULT_S: Final = 8.0
PEOPLE: Final = 3


@dataclass(slots=True, kw_only=True)
class Record:
    """What clients saw: how long each answer took, and which runs were accepted."""

    waits_s: list[float] = field(default_factory=list[float])
    statuses: dict[int, int] = field(default_factory=dict[int, int])
    wrong: list[str] = field(default_factory=list[str])
    accepted: set[str] = field(default_factory=set[str])
    attempted: int = 0

    def note(self, response: httpx.Response, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        status = response.status_code
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status >= 500 and (status != 503 or "retry-after" not in response.headers):
            self.wrong.append(f"{response.request.method} {response.request.url.path}: {status} {response.text[:200]}")


Behind = tuple[House, Mapping[Edge, FaultProxy]]


@pytest.fixture
async def behind(place: Place) -> AsyncGenerator[Behind, None]:
    async with open_house_behind_proxies(place) as opened:
        yield opened


async def use(person: Person, record: Record, *, until: asyncio.Event) -> None:
    """Somebody who works on through a fault, and asks again under the same key until an order is surely placed."""
    while not until.is_set():
        await asked(person, record, "GET", "/v1/profile")
        await asked(person, record, "GET", "/v1/usage")
        key, record.attempted = str(new_id()), record.attempted + 1
        while True:
            response = await asked(
                person, record, "POST", "/v1/runs", json={"task": "Go on"}, headers={"Idempotency-Key": key}
            )
            if response.status_code == 202:
                record.accepted.add(response.json()["id"])
                break
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.1)


async def asked(person: Person, record: Record, method: str, path: str, **body: object) -> httpx.Response:
    started = time.monotonic()
    response = await person.client.request(method, path, **body)  # pyright: ignore[reportArgumentType]
    record.note(response, time.monotonic() - started)
    return response


async def unsettled(house: House) -> dict[str, int]:
    counts = await house.place.database.fetch(
        """
        SELECT (SELECT count(*) FROM agent_runs WHERE finished_at IS NULL) AS open_runs,
               (SELECT count(*) FROM metering.holds WHERE state = 'held') AS holds,
               (SELECT count(*) FROM gateway.outbox WHERE sent_at IS NULL)
               + (SELECT count(*) FROM agents.outbox WHERE sent_at IS NULL)
               + (SELECT count(*) FROM metering.outbox WHERE sent_at IS NULL) AS unsent
        """
    )
    return {name: count for name, count in counts[0].items() if count}


@pytest.mark.parametrize("fault", ["silence", "refusal", "latency"])
@pytest.mark.parametrize("edge", ["postgres", "rabbitmq", "redis"])
async def test_a_broken_way_bounds_every_answer_and_loses_nothing(behind: Behind, edge: Edge, fault: Fault) -> None:
    house, proxies = behind
    record, over = Record(), asyncio.Event()
    async with house.person() as ada, house.person() as bob, house.person() as eve:
        people = (ada, bob, eve)
        async with asyncio.TaskGroup() as group:
            for person in people:
                group.create_task(use(person, record, until=over))
            await asyncio.sleep(1)
            await proxies[edge].set(fault)
            await asyncio.sleep(FAULT_S)
            await proxies[edge].set("none")
            healed = time.monotonic()
            await eventually(lambda: _works(ada), within_s=RECOVER_WITHIN_S)
            over.set()
        accepted = len(record.accepted)

        async def all_ended() -> bool:
            finished = await house.place.database.fetchval("SELECT count(*) FROM agent_runs WHERE status = 'succeeded'")
            return finished == accepted and not await unsettled(house)

        await eventually(all_ended, within_s=90)
        recovered_s = time.monotonic() - healed
    booked = await house.place.database.fetchval(
        "SELECT sum(metric_value) FROM usage_metrics WHERE metric_type = 'runs'"
    )
    p99 = sorted(record.waits_s)[int(len(record.waits_s) * 0.99)]
    print(
        f"{edge} {fault}: attempt {record.attempted} ack {accepted} booked {booked} statuses {record.statuses} "
        f"p99 {p99:.2f} s max {max(record.waits_s):.2f} s recovered {recovered_s:.1f} s"
    )
    assert record.wrong == []
    assert max(record.waits_s) <= ANSWER_WITHIN_S
    assert booked == accepted == record.attempted


async def _works(person: Person) -> bool:
    response = await person.client.get("/v1/usage")
    return response.status_code == 200
