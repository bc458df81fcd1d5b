"""A database of its own for each test, cloned from the migrated template in well under a second."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg

from libs.common import database
from libs.common.ids import new_id
from tests.harness.servers import TEMPLATE, Servers


@dataclass(frozen=True, slots=True, kw_only=True)
class TestDatabase:
    """One test's database. Rows are looked at as the superuser, whom no policy binds; services use their own roles."""

    __test__ = False

    servers: Servers
    name: str
    superuser: "asyncpg.Connection[asyncpg.Record]"

    def url(self, role: str) -> str:
        return self.servers.as_role(role, self.name)

    @property
    def superuser_url(self) -> str:
        return f"{self.servers.postgres_url}/{self.name}"

    async def fetch(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        return [dict(row) for row in await self.superuser.fetch(sql, *args)]

    async def fetchval(self, sql: str, *args: Any) -> Any:
        return await self.superuser.fetchval(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        return await self.superuser.execute(sql, *args)

    @asynccontextmanager
    async def connect_as(self, role: str) -> AsyncGenerator["asyncpg.Connection[asyncpg.Record]", None]:
        """A bare connection as a login role, for instance `venture_operator` running the runbook's SQL."""
        connection = await asyncpg.connect(self.url(role))
        await database.prepare(connection)
        try:
            yield connection
        finally:
            await connection.close()


@asynccontextmanager
async def new_database(servers: Servers) -> AsyncGenerator[TestDatabase, None]:
    admin = await asyncpg.connect(f"{servers.postgres_url}/postgres")
    name = f"test_{new_id().hex}"
    try:
        await admin.execute(f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
        superuser = await asyncpg.connect(f"{servers.postgres_url}/{name}")
        await database.prepare(superuser)
        try:
            yield TestDatabase(servers=servers, name=name, superuser=superuser)
        finally:
            await superuser.close()
            await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()
