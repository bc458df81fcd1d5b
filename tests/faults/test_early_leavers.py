"""A thousand clients hang up just before the usage is told: leaving early is no way to have answers for nothing."""

from collections.abc import AsyncGenerator

import pytest
from llmock.pytest_plugin import LLMock

from tests.harness.house import House
from tests.harness.services import Place
from tests.integration.house.test_streams_of_runs import a_house_with_a_model, billed_share_of_leavers


@pytest.fixture
async def house(place: Place, llmock: LLMock) -> AsyncGenerator[House, None]:
    async with a_house_with_a_model(place, llmock) as house:
        yield house


async def test_a_thousand_early_leavers_are_billed_what_was_used(house: House) -> None:
    assert 0.99 <= await billed_share_of_leavers(house, 1_000) <= 1.0
