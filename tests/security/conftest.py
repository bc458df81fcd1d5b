"""One house for each file: attacks are many and cheap, starting four services is not."""

from collections.abc import AsyncGenerator

import pytest

from tests.harness.database import TestDatabase, new_database
from tests.harness.house import House, open_house
from tests.harness.servers import Servers
from tests.harness.services import Place


@pytest.fixture(scope="module")
async def house(lasting_place: Place) -> AsyncGenerator[House, None]:
    async with open_house(lasting_place) as opened:
        yield opened


@pytest.fixture(scope="module")
async def lasting_database(servers: Servers) -> AsyncGenerator[TestDatabase, None]:
    async with new_database(servers) as database:
        yield database
