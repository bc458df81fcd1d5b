"""Whatever process fails while people work: answers stay bounded, and afterwards every promise adds up."""

import asyncio
import secrets
import time
from collections.abc import Mapping
from typing import Any, Final, LiteralString

import asyncpg
import httpx
import pytest

from libs.common.ids import new_id
from ops.stack import dotenv
from ops.stack.stack import Stack
from tests.faults.clients import ANSWER_WITHIN_S, Record, asked, people, while_working
from tests.faults.kills import Killer
from tests.faults.oracle import violations
from tests.faults.process_faults import FAULTS, Field
from tests.faults.verdict import judge
from tests.harness.patience import eventually

PEOPLE: Final = 3
SETTLED_WITHIN_S: Final = 90
SMOKE: Final = {"ten database connections killed", "redis frozen for 10 s"}


@pytest.fixture
def field(stack: Stack, environment: Mapping[str, str], request: pytest.FixtureRequest) -> Field:
    seed = request.config.getoption("--seed") or secrets.randbelow(1_000_000)
    values = dotenv.parse(stack.home.dotenv.read_text())
    address = environment["OPERATOR_DATABASE_URL"].rpartition("@")[2]
    return Field(
        stack=stack,
        killer=Killer(stack=stack, seed=seed),
        environment=environment,
        superuser_url=f"postgresql://postgres:{values['POSTGRES_PASSWORD']}@{address}",
    )


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.smoke] if name in SMOKE else []) for name in FAULTS]
)
async def test_people_work_through_a_fault_and_everything_adds_up(field: Field, name: str) -> None:
    record = Record()
    async with people(field.environment, PEOPLE) as clients:
        await while_working(clients, record, lambda: FAULTS[name](field))
        healed = time.monotonic()

        async def settled() -> bool:
            return not await violations_of(field)

        try:
            await eventually(settled, within_s=SETTLED_WITHIN_S, every_s=0.5)
        finally:
            runs = await fetch(field, "SELECT id::text AS id FROM agent_runs")
            effects = [row["id"] for row in runs if row["id"] in record.accepted]
            verdict = judge(
                seed=field.killer.seed,
                attempted=record.accepted,
                acked=sorted(record.accepted),
                effects=effects,
                ambiguous=record.unreachable,
                fault=name,
                statuses=record.statuses,
                p99=f"{record.p99_s:.2f}s",
                slowest=f"{record.slowest_s:.2f}s",
                settled=f"{time.monotonic() - healed:.1f}s",
            )
            print(verdict, await violations_of(field))
    assert verdict.is_clean
    assert len(record.accepted) == record.attempted
    assert record.wrong == []
    assert record.slowest_s <= ANSWER_WITHIN_S


async def test_signing_up_is_answered_in_time_while_the_database_is_frozen(field: Field) -> None:
    record, over = Record(), asyncio.Event()
    async with people(field.environment, 2) as clients:

        async def sign_up(client: httpx.AsyncClient) -> None:
            while not over.is_set():
                body = {"email": f"{new_id().hex}@example.com", "password": new_id().hex}
                await asked(client, record, "POST", "/auth/v1/signup", json=body)

        async with asyncio.TaskGroup() as group:
            # So many that some are in the middle of their transaction whenever the database stops.
            for client in clients * 4:
                group.create_task(sign_up(client))
            await asyncio.sleep(1)
            await FAULTS["database frozen for 10 s"](field)
            over.set()
        last = {"email": f"{new_id().hex}@example.com", "password": new_id().hex}
        assert (await clients[0].post("/auth/v1/signup", json=last)).status_code == 200
    print(f"{record.statuses}, p99 {record.p99_s:.2f} s, slowest {record.slowest_s:.2f} s")
    assert record.statuses.keys() == {"200", "503"}
    assert record.wrong == []
    assert record.slowest_s <= ANSWER_WITHIN_S


async def violations_of(field: Field) -> dict[str, int]:
    async def fetch_rows(statement: LiteralString) -> list[dict[str, Any]]:
        return await fetch(field, statement)

    return await violations(fetch_rows)


async def fetch(field: Field, statement: LiteralString) -> list[dict[str, Any]]:
    connection = await asyncpg.connect(field.superuser_url, timeout=5)
    try:
        return [dict(row) for row in await connection.fetch(statement)]
    finally:
        await connection.close()
