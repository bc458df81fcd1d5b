"""A broken way to PostgreSQL, RabbitMQ or Redis bounds every answer, loses nothing, and heals by itself."""

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping
from typing import Any, Final, LiteralString

import pytest

from tests.faults.clients import ANSWER_WITHIN_S, UNLIMITED, Record, while_working
from tests.faults.edges import Edge, open_house_behind_proxies
from tests.faults.fault_proxy import Fault, FaultProxy
from tests.faults.oracle import violations
from tests.harness.house import House
from tests.harness.patience import eventually
from tests.harness.services import Place

RECOVER_WITHIN_S: Final = 15.0
SETTLED_WITHIN_S: Final = 90.0
FAULT_S: Final = 8.0

Behind = tuple[House, Mapping[Edge, FaultProxy]]


@pytest.fixture
async def behind(place: Place) -> AsyncGenerator[Behind, None]:
    async with open_house_behind_proxies(place) as opened:
        yield opened


@pytest.mark.parametrize("fault", ["silence", "refusal", "latency"])
@pytest.mark.parametrize("edge", ["postgres", "rabbitmq", "redis"])
async def test_a_broken_way_bounds_every_answer_and_loses_nothing(behind: Behind, edge: Edge, fault: Fault) -> None:
    house, proxies = behind
    record, healed_at = Record(), 0.0

    async def break_and_heal() -> None:
        nonlocal healed_at
        await proxies[edge].set(fault)
        await asyncio.sleep(FAULT_S)
        await proxies[edge].set("none")
        healed_at = time.monotonic()
        await eventually(works, within_s=RECOVER_WITHIN_S)

    async def fetch(statement: LiteralString) -> list[dict[str, Any]]:
        return await house.place.database.fetch(statement)

    async def settled() -> bool:
        return not await violations(fetch)

    async with house.person() as ada, house.person() as bob, house.person() as eve:
        await house.place.database.execute(UNLIMITED, [ada.id, bob.id, eve.id])

        async def works() -> bool:
            return (await ada.client.get("/v1/usage")).status_code == 200

        await while_working([ada.client, bob.client, eve.client], record, break_and_heal)
        await eventually(settled, within_s=SETTLED_WITHIN_S)
    booked = await house.place.database.fetchval(
        "SELECT sum(metric_value) FROM usage_metrics WHERE metric_type = 'runs'"
    )
    print(
        f"{edge} {fault}: attempt {record.attempted} ack {len(record.accepted)} booked {booked} "
        f"statuses {record.statuses} p99 {record.p99_s:.2f} s slowest {record.slowest_s:.2f} s "
        f"settled {time.monotonic() - healed_at:.1f} s after the heal"
    )
    assert record.wrong == []
    assert record.slowest_s <= ANSWER_WITHIN_S
    assert booked == len(record.accepted) == record.attempted
