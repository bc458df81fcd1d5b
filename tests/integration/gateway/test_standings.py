"""What the gateway knows of a user is never older than its time, and whoever asked lately does not wait for it."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID

import asyncpg
import pytest

from libs.common.database import Database, connect
from libs.common.ids import new_id
from services.gateway.domain import Identity, SignInRequired
from services.gateway.sessions import KEPT_WARM_S, RENEW_EVERY_S, STANDING_TTL_S, StandingCache, Standings
from tests.harness.database import TestDatabase


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Sight:
    """One user in the tables, and the gateway's view of them at a time that stands still."""

    def __init__(self, test_database: TestDatabase, database: Database) -> None:
        self.clock = Clock()
        self.identity = Identity(user_id=new_id(), session_id=None, email="ada@example.com", claims={})
        self._tables = test_database
        self.standings = Standings(database, StandingCache(clock=self.clock), admin_user_ids=())

    async def sign_up(self) -> None:
        await self._tables.execute("INSERT INTO auth.users (id, email) VALUES ($1, 'ada@example.com')", self.user_id)

    @property
    def user_id(self) -> UUID:
        return self.identity.user_id

    async def ban(self) -> None:
        await self._tables.execute(
            "UPDATE auth.users SET banned_until = now() + interval '1 day' WHERE id = $1", self.user_id
        )

    async def is_banned(self) -> bool:
        return (await self.standings.of(self.identity)).is_banned


@pytest.fixture
async def database(test_database: TestDatabase) -> AsyncGenerator[Database, None]:
    async with connect(test_database.url("venture_gateway"), application_name="test") as pool:
        yield pool


@pytest.fixture
async def sight(test_database: TestDatabase, database: Database) -> Sight:
    it = Sight(test_database, database)
    await it.sign_up()
    return it


async def test_who_asked_lately_is_read_again_without_asking(sight: Sight) -> None:
    assert not await sight.is_banned()
    await sight.ban()
    sight.clock.now += RENEW_EVERY_S
    await sight.standings.renew()
    assert await sight.is_banned()


async def test_who_has_not_asked_for_long_is_not_read_again(sight: Sight) -> None:
    assert not await sight.is_banned()
    for _ in range(int(KEPT_WARM_S / RENEW_EVERY_S)):
        sight.clock.now += RENEW_EVERY_S
        await sight.standings.renew()
    await sight.ban()
    await sight.standings.renew()
    assert not await sight.is_banned()  # what was read last is still good
    sight.clock.now += STANDING_TTL_S
    assert await sight.is_banned()


async def test_nothing_is_told_after_its_time(sight: Sight) -> None:
    assert not await sight.is_banned()
    await sight.ban()
    sight.clock.now += STANDING_TTL_S
    assert await sight.is_banned()


async def test_who_asked_lately_does_not_wait_for_the_tables(sight: Sight, test_database: TestDatabase) -> None:
    assert not await sight.is_banned()
    for _ in range(3):
        sight.clock.now += STANDING_TTL_S - 0.1
        await sight.standings.renew()
    blocker = await asyncpg.connect(test_database.superuser_url)
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE auth.users IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(1):
                assert not await sight.is_banned()
    finally:
        await blocker.close()


async def test_an_account_that_is_gone_is_refused(sight: Sight, test_database: TestDatabase) -> None:
    assert not await sight.is_banned()
    await test_database.execute("DELETE FROM auth.users WHERE id = $1", sight.user_id)
    sight.clock.now += STANDING_TTL_S
    with pytest.raises(SignInRequired):
        await sight.is_banned()
