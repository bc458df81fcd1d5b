"""A process whose clock is wrong by ten minutes, for real: answers in good order, nothing early, nothing twice."""

import secrets
from collections.abc import Generator
from typing import Any, Final

import asyncpg
import httpx
import pytest

from ops.stack.stack import Stack
from tests.faults.other_programs import FAKETIME, started_otherwise, with_clock
from tests.faults.soak.load import SETTINGS, open_load
from tests.faults.soak.ports import Ports
from tests.harness.patience import eventually

needs_faketime = pytest.mark.skipif(not FAKETIME.exists(), reason="a wrong clock needs the package faketime")
EXPECTED: Final = {200, 202, 409, 503}
"""Never 401: the user's own token is good, and whoever is told otherwise signs in again for nothing."""
ASKED: Final = (
    ("GET", "/v1/profile"),
    ("GET", "/v1/usage"),
    ("GET", "/v1/runs"),
    ("POST", "/v1/runs"),
    ("GET", "/v1/billing/subscription"),
)


@pytest.fixture(scope="module")
def own_stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack, None, None]:
    stack = Stack(tmp_path_factory.mktemp("clocks") / "home")
    try:
        stack.up(settings=SETTINGS)
        yield stack
    finally:
        stack.wipe()


async def clock_check(url: str) -> dict[str, Any]:
    async with httpx.AsyncClient(timeout=10) as client:
        checks = (await client.get(f"{url}/health/ready")).json()["checks"]
    return next(check for check in checks if check["name"] == "clock_off_s")


@needs_faketime
@pytest.mark.parametrize("off", ["+10m", "-1h"])
@pytest.mark.parametrize("service", ["gateway", "billing", "metering", "agents"])
async def test_a_wrong_clock_refuses_in_good_order_and_books_nothing_wrongly(
    own_stack: Stack, service: str, off: str
) -> None:
    seed, url = secrets.randbelow(1_000_000), Ports(own_stack).url(service, 1)
    statuses: list[tuple[str, int]] = []
    async with open_load(own_stack, seed=seed, visitors=1) as load:
        async with started_otherwise(own_stack, service, with_clock(off)):
            visitor = await load.people.sign_up()
            for _ in range(5):
                for method, path in ASKED:
                    body = {"json": {"task": "Go on", "max_output_tokens": 60}} if method == "POST" else {}
                    answer = await load.people.door.ask(method, path, headers=visitor.headers, **body)
                    if answer is not None:
                        statuses.append((path, answer.status_code))
            seen = await clock_check(url)
        await eventually(lambda: is_right(url), within_s=30)
        # With the right time again all of it goes on by itself; a token of another time has to be a new one.
        visitor = await load.people.sign_up()
        await load.people.follow(visitor, await load.people.order(visitor))
        await load.promises.settle()
    periods = await periods_begun_elsewhen(load.promises.superuser_url)
    print(f"{service} {off}: clock_off_s {seen['value']}; answers {sorted(set(statuses))}; late {len(load.books.late)}")
    assert seen["status"] == "failed"
    assert {status for _, status in statuses} <= EXPECTED
    assert load.books.late == []
    assert periods == 0


async def is_right(url: str) -> bool:
    try:
        return (await clock_check(url))["status"] == "ok"
    except (httpx.TransportError, KeyError):
        return False


async def periods_begun_elsewhen(superuser_url: str) -> int:
    """Counters and runs that are dated by another clock than the database's."""
    connection = await asyncpg.connect(superuser_url)
    try:
        return await connection.fetchval(
            """
            SELECT (SELECT count(*) FROM usage_metrics WHERE period_start <> metering.period_start(now()))
                 + (SELECT count(*) FROM agent_runs WHERE created_at > now() OR finished_at > now()
                    OR finished_at < created_at OR created_at < now() - interval '30 minutes')
                 + (SELECT count(*) FROM metering.holds WHERE expires_at > now() + interval '25 hours')
            """
        )
    finally:
        await connection.close()
