"""The engines as services meet them: passwords hashed and needed, no rights to spare."""

import asyncpg
import pytest
import redis.asyncio

from ops.engines.postgresql import SUPERUSER
from ops.stack.environments import KNOWN_BY
from tests.harness.database import TestDatabase
from tests.harness.services import Place
from tests.security.rls import LOGIN_ROLES


async def test_passwords_are_kept_as_scram_and_asked_for(lasting_database: TestDatabase) -> None:
    kept = await lasting_database.fetch(
        "SELECT rolname, rolpassword FROM pg_authid WHERE rolcanlogin AND rolname !~ '^pg_'"
    )
    assert {row["rolname"] for row in kept} >= {*LOGIN_ROLES, SUPERUSER}
    assert not [row["rolname"] for row in kept if not row["rolpassword"].startswith("SCRAM-SHA-256$")]
    # An image may trust who is inside its container; nobody else's word is taken, on no engine.
    methods = await lasting_database.fetch(
        """
        SELECT DISTINCT auth_method FROM pg_hba_file_rules
        WHERE type LIKE 'host%' AND address NOT IN ('127.0.0.1', '::1')
        """
    )
    assert {row["auth_method"] for row in methods} <= {"scram-sha-256"}


@pytest.mark.parametrize("role", [*LOGIN_ROLES, SUPERUSER])
@pytest.mark.parametrize("password", ["", "x", "postgres"])
async def test_nobody_enters_the_database_without_the_password(
    lasting_database: TestDatabase, role: str, password: str
) -> None:
    address = lasting_database.servers.postgres_url.rpartition("@")[2]
    host, _, port = address.rpartition(":")
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(host=host, port=int(port), user=role, password=password, database=lasting_database.name)


async def test_no_service_is_given_the_superusers_or_an_operators_login() -> None:
    given = {name for known in KNOWN_BY.values() for name in known}
    assert not {name for name in given if "POSTGRES_PASSWORD" in name or "OPERATOR" in name}


async def test_redis_lets_nobody_in_without_the_password(lasting_place: Place) -> None:
    address = lasting_place.redis_url.rpartition("@")[2]
    if "@" not in lasting_place.redis_url:
        pytest.skip("this Redis is a throw-away container")
    for login in ("", "default:@", "venture:wrong@", ":@"):
        client = redis.asyncio.Redis.from_url(  # pyright: ignore[reportUnknownMemberType] - its **kwargs are untyped
            f"redis://{login}{address}"
        )
        with pytest.raises(redis.RedisError):
            await client.ping()  # pyright: ignore[reportUnknownMemberType]
        await client.aclose()
