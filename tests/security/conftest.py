"""One house for each file: attacks are many and cheap, starting four services is not."""

from collections.abc import AsyncGenerator

import pytest

from tests.harness.database import TestDatabase, new_database
from tests.harness.house import House, open_house
from tests.harness.servers import Servers
from tests.harness.services import Place
from tests.security.outside import SECRET, Neighbours, Operation


@pytest.fixture(scope="module")
async def house(lasting_place: Place) -> AsyncGenerator[House, None]:
    async with open_house(lasting_place) as opened:
        yield opened


@pytest.fixture(scope="module")
async def lasting_database(servers: Servers) -> AsyncGenerator[TestDatabase, None]:
    async with new_database(servers) as database:
        yield database


@pytest.fixture(scope="module")
async def operations(house: House) -> list[Operation]:
    document = (await house.gateway.client.get("/openapi.json")).json()
    found = [
        Operation(method=method.upper(), path=path)
        for path, methods in document["paths"].items()
        for method in methods
        if method in {"get", "post", "put", "patch", "delete"}
    ]
    assert len(found) > 40
    return found


@pytest.fixture(scope="module")
async def neighbours(house: House) -> AsyncGenerator[Neighbours, None]:
    async with house.person() as ada, house.person() as bea:
        run = await bea.client.post("/v1/runs", json={"task": SECRET}, headers={"Prefer": "wait=20"})
        assert run.status_code == 200, run.text
        made = [run.json()["id"]]
        for path, body in (
            ("/v1/templates", {"name": SECRET, "agent_type": "suggestion", "instructions": SECRET}),
            ("/v1/webhook-endpoints", {"kind": "generic", "name": SECRET}),
            ("/v1/api-keys", {"name": SECRET, "scopes": ["runs"]}),
        ):
            answer = await bea.client.post(path, json=body)
            assert answer.status_code == 201, answer.text
            made.append(answer.json()["id"])
        yield Neighbours(ada=ada, bea=bea, ids=frozenset(made))
