"""What the gateway knows of a user is never older than its time, and whoever goes on asking does not wait for it."""

import asyncio
from collections.abc import AsyncGenerator
from uuid import UUID

import asyncpg
import pytest

from libs.common.database import Database, connect
from libs.common.ids import new_id
from services.gateway.domain import Identity, SignInRequired
from services.gateway.sessions import RENEW_AFTER_S, STANDING_TTL_S, StandingCache, Standings
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually


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
        self._standings = Standings(database, StandingCache(clock=self.clock), admin_user_ids=())

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
        return (await self._standings.of(self.identity)).is_banned


@pytest.fixture
async def database(test_database: TestDatabase) -> AsyncGenerator[Database, None]:
    async with connect(test_database.url("venture_gateway"), application_name="test") as pool:
        yield pool


@pytest.fixture
async def sight(test_database: TestDatabase, database: Database) -> Sight:
    it = Sight(test_database, database)
    await it.sign_up()
    return it


async def test_who_goes_on_asking_is_told_what_is_known_and_it_is_read_again_meanwhile(sight: Sight) -> None:
    assert not await sight.is_banned()
    await sight.ban()
    sight.clock.now += RENEW_AFTER_S - 0.1
    assert not await sight.is_banned()
    sight.clock.now += 0.2
    assert not await sight.is_banned()  # as it is known, at once
    # No time passes by that clock: what was known would still be good.
    assert await eventually(sight.is_banned)


async def test_nothing_is_told_after_its_time(sight: Sight) -> None:
    assert not await sight.is_banned()
    await sight.ban()
    sight.clock.now += STANDING_TTL_S
    assert await sight.is_banned()


async def test_who_goes_on_asking_does_not_wait_for_the_tables(sight: Sight, test_database: TestDatabase) -> None:
    assert not await sight.is_banned()
    await sight.ban()
    blocker = await asyncpg.connect(test_database.superuser_url)
    try:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE auth.users IN ACCESS EXCLUSIVE MODE")
            sight.clock.now += RENEW_AFTER_S
            async with asyncio.timeout(1):
                assert not await sight.is_banned()
                assert not await sight.is_banned()
    finally:
        await blocker.close()
    assert await eventually(sight.is_banned)


async def test_an_account_that_is_gone_is_refused(sight: Sight, test_database: TestDatabase) -> None:
    assert not await sight.is_banned()
    await test_database.execute("DELETE FROM auth.users WHERE id = $1", sight.user_id)
    sight.clock.now += STANDING_TTL_S
    with pytest.raises(SignInRequired):
        await sight.is_banned()
