from collections.abc import AsyncGenerator

import pytest

from tests.harness.house import House, open_house
from tests.harness.services import Place


@pytest.fixture
async def house(place: Place) -> AsyncGenerator[House, None]:
    async with open_house(place) as opened:
        yield opened
