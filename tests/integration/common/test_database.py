"""A statement by itself on a real PostgreSQL: committed with its answer, and alone."""

import asyncpg
import pytest

from libs.common import database as db
from libs.common.database import Database, DatabaseUnavailable
from libs.common.ids import new_id
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.servers import Servers


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


async def test_a_database_that_is_put_aside_and_put_back_is_away_for_a_while(
    servers: Servers, test_database: TestDatabase
) -> None:
    """As a restore exchanges it: first it takes nobody in, then there is none of its name."""
    name, aside = test_database.name, f"{test_database.name}_aside"
    admin = await asyncpg.connect(f"{servers.postgres_url}/postgres")
    async with db.connect(test_database.url("venture_gateway"), application_name="test", min_size=1) as database:
        try:
            await admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false")
            await admin.fetch("SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1", name)
            await eventually(lambda: is_away(database))
            await admin.execute(f"ALTER DATABASE {name} RENAME TO {aside}")
            assert await is_away(database)
            await admin.execute(f"ALTER DATABASE {aside} RENAME TO {name}")
            await admin.execute(f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true")
            await database.wait_until_up()
        finally:
            await admin.close()


async def is_away(database: Database) -> bool:
    """An error of any other kind would end the loops of a service."""
    try:
        await database.ping()
    except DatabaseUnavailable:
        return True
    return False
