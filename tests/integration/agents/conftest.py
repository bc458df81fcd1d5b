"""Fixtures of agents' tests."""

from collections.abc import AsyncGenerator
from uuid import UUID

import pytest

from libs.common.database import Database
from libs.common.ids import new_id
from tests.harness.database import TestDatabase
from tests.integration.agents.workshop import agents_database


@pytest.fixture
def user_id() -> UUID:
    return new_id()


@pytest.fixture
async def database(test_database: TestDatabase) -> AsyncGenerator[Database, None]:
    """Agents' own role on the test's database, for handing events to consumers directly."""
    async with agents_database(test_database) as database:
        yield database
