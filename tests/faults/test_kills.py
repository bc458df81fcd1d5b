"""Killing anything at any point loses nothing and counts nothing twice."""

import asyncio
import os
import random
import secrets
import sys
from collections import Counter
from collections.abc import Mapping
from typing import LiteralString

import asyncpg
import pytest

from libs.common import database as db
from libs.common import outbox
from libs.common.database import DatabaseUnavailable
from libs.common.events.agents import RunFinished
from libs.common.ids import new_id
from ops.home import ROOT
from ops.stack import dotenv
from ops.stack.stack import Stack
from tests.faults.kills import VICTIMS, Killer
from tests.harness.patience import eventually

EVENTS = 10_000
USERS = 20


@pytest.fixture
def killer(stack: Stack, request: pytest.FixtureRequest) -> Killer:
    seed = request.config.getoption("--seed") or secrets.randbelow(1_000_000)
    print(f"seed {seed}; repeat with --seed {seed}")
    return Killer(stack=stack, seed=seed)


@pytest.mark.parametrize("victim", VICTIMS)
async def test_the_journey_adds_up_although_a_process_is_killed_in_its_midst(
    stack: Stack, killer: Killer, victim: str
) -> None:
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "ops.demo",
        cwd=ROOT,
        env={**os.environ, "VENTURE_HOME": str(stack.home.path)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output = bytearray()
    if demo.stdout is None:
        raise RuntimeError("the demo has no output to follow")
    while line := await demo.stdout.readline():
        output += line
        if line.startswith(b"3. "):  # in the midst of fifty runs
            await killer.kill_at_random([victim], times=1, every_s=0.7)
    assert await demo.wait() == 0, output.decode()
    assert killer.killed == [victim]


async def test_ten_thousand_usage_events_survive_twenty_random_kills(
    stack: Stack, environment: Mapping[str, str], killer: Killer
) -> None:
    chance = random.Random(killer.seed)  # noqa: S311 - a schedule to repeat
    users = [new_id() for _ in range(USERS)]
    events = [
        RunFinished(
            run_id=new_id(),
            user_id=chance.choice(users),
            outcome="succeeded",
            is_billable=True,
            agent_type="suggestion",
            model_used="offline",
            input_tokens=chance.randint(1, 500),
            output_tokens=chance.randint(1, 500),
            cost_micro_usd=0,
        )
        for _ in range(EVENTS)
    ]
    expected: Counter[tuple[str, str]] = Counter()
    for event in events:
        expected[str(event.user_id), "runs"] += 1
        expected[str(event.user_id), "tokens"] += event.input_tokens + event.output_tokens

    ambiguous = 0
    kills = asyncio.create_task(
        killer.kill_at_random(["metering", "agents", "rabbitmq", "postgres", "gateway"], times=20, every_s=1.2)
    )
    async with db.connect(agents_database_url(stack), application_name="fault-producer") as producer:
        for start in range(0, EVENTS, 20):
            ambiguous += await add_surely(producer, events[start : start + 20])
            await asyncio.sleep(chance.uniform(0, 0.2))
    await kills

    async def booked() -> dict[tuple[str, str], int]:
        counted = await counters(environment, [str(user) for user in users])
        return counted if counted == expected else {}

    try:
        await eventually(booked, within_s=240, every_s=0.5)
    finally:
        ledger = await ledger_of(environment, [str(user) for user in users])
        lost = sum((expected - ledger).values())
        double = sum((ledger - expected).values())
        print(
            f"seed {killer.seed} attempt {EVENTS} ambiguous {ambiguous} kills {killer.killed} lost {lost} dup {double}"
        )
    assert (lost, double) == (0, 0)


def agents_database_url(stack: Stack) -> str:
    """The producer writes the outbox of agents as agents itself would."""
    values = dotenv.parse(stack.home.dotenv.read_text())
    address = stack.environment()["OPERATOR_DATABASE_URL"].rpartition("@")[2]
    return f"postgresql://venture_agents:{values['AGENTS_DB_PASSWORD']}@{address}"


async def add_surely(producer: db.Database, events: list[RunFinished]) -> int:
    """Add events until they are surely in; a commit whose outcome is unknown is tried again under the same ids."""
    unknown = 0
    while True:
        try:
            async with producer.transaction() as conn:
                await outbox.add(conn, *events)
        except DatabaseUnavailable:
            unknown += 1
            await producer.wait_until_up()
        except asyncpg.UniqueViolationError:  # the unknown commit had happened
            return unknown
        else:
            return unknown


async def counters(environment: Mapping[str, str], users: list[str]) -> Counter[tuple[str, str]]:
    return await _sums(
        environment,
        "SELECT user_id, metric_type AS metric, metric_value AS amount FROM usage_metrics WHERE user_id = ANY($1)",
        users,
    )


async def ledger_of(environment: Mapping[str, str], users: list[str]) -> Counter[tuple[str, str]]:
    return await _sums(
        environment,
        "SELECT user_id, metric_type AS metric, amount FROM metering.usage_ledger WHERE user_id = ANY($1)",
        users,
    )


async def _sums(environment: Mapping[str, str], sql: LiteralString, users: list[str]) -> Counter[tuple[str, str]]:
    # Through our own database layer: right after the last kill the server may still be starting.
    async with db.connect(environment["OPERATOR_DATABASE_URL"], application_name="fault-oracle") as database:
        await database.wait_until_up()
        async with database.transaction() as conn:
            sums: Counter[tuple[str, str]] = Counter()
            for row in await conn.fetch(sql, users):
                sums[row["user_id"], row["metric"]] += row["amount"]
            return sums
