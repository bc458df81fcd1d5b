"""A statement by itself on a real PostgreSQL: committed with its answer, and alone."""

import pytest

from libs.common import database as db
from libs.common.database import DatabaseUnavailable
from libs.common.ids import new_id
from tests.harness.database import TestDatabase


async def test_one_statement_commits_itself_and_a_second_is_refused(test_database: TestDatabase) -> None:
    count = "SELECT count(*) FROM gateway.inbox"
    async with db.connect(test_database.url("venture_gateway"), application_name="test") as database:
        async with database.statement() as conn:
            assert await conn.execute("INSERT INTO inbox (event_id, type) VALUES ($1, 'a.b.v1')", new_id()) == 1
            assert await test_database.fetchval(count) == 1
            with pytest.raises(RuntimeError, match="transaction"):
                await conn.execute("INSERT INTO inbox (event_id, type) VALUES ($1, 'a.b.v1')", new_id())
        async with database.statement() as conn:
            assert await conn.fetchval("SELECT count(*) FROM inbox") == 1


async def test_a_statement_whose_connection_breaks_says_so_and_the_next_has_another(
    test_database: TestDatabase,
) -> None:
    async with db.connect(test_database.url("venture_gateway"), application_name="test", max_size=2) as database:
        with pytest.raises(DatabaseUnavailable):
            async with database.statement() as conn:
                await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        for _ in range(3):
            async with database.statement() as conn:
                assert await conn.fetchval("SELECT 1") == 1
