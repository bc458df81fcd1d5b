"""A thousand askers die between hold and settlement: what they held is back within the lease and thirty seconds."""

import asyncio
import os
import random
import signal
import sys
import time

import pytest

from libs.common.broker import QueueState
from libs.common.ids import new_id
from services.metering.jobs import HoldSweeper
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.tasks import running
from tests.integration.metering.accounts import a_finished_run, finish, has_no_drift, metering_of, set_tier

HOLDS = 1_000
HOLDS_EACH = 50
LEASE_S = 60
GRACE_S = 30
_ASK_AND_WAIT = f"""
import asyncio, sys
from uuid import UUID
from libs.common import database as db
from tests.integration.metering.accounts import reserve

async def main() -> None:
    async with db.connect(sys.argv[1], application_name="asker") as database:
        for _ in range({HOLDS_EACH}):
            print((await reserve(database, UUID(sys.argv[2]))).id, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def ask_and_die(url: str, user_id: str) -> list[str]:
    """A process that holds quota and is killed with SIGKILL before it could do anything with it."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", _ASK_AND_WAIT, url, user_id, stdout=asyncio.subprocess.PIPE
    )
    if process.stdout is None:
        raise RuntimeError("the asker has no output to follow")
    held = [(await process.stdout.readline()).decode().strip() for _ in range(HOLDS_EACH)]
    os.kill(process.pid, signal.SIGKILL)
    await process.wait()
    return held


async def test_what_dead_askers_held_comes_back_in_time(
    test_database: TestDatabase, request: pytest.FixtureRequest
) -> None:
    seed = int(request.config.getoption("--seed") or 0) or random.SystemRandom().randrange(1, 2**31)
    chance = random.Random(seed)  # noqa: S311 - a schedule to repeat
    user_id = new_id()
    news = QueueState(consumers=1, waiting=0, parked=0)

    async def is_free() -> bool:
        return not await test_database.fetchval("SELECT sum(held_value) FROM usage_metrics")

    async with metering_of(test_database) as database:
        await set_tier(database, user_id, "enterprise")
        async with running(HoldSweeper(database, lambda: news).run):
            held: list[str] = []
            while len(held) < HOLDS:
                held += await ask_and_die(test_database.url("venture_metering"), str(user_id))
            died_at = time.monotonic()
            await eventually(is_free, within_s=LEASE_S + GRACE_S, every_s=0.5)
            took_s = time.monotonic() - died_at
        # Some of the runs had begun all the same; they are told of after the sweep, and told twice.
        late = chance.sample([row["id"] for row in await test_database.fetch("SELECT id FROM metering.holds")], 100)
        for hold_id in late * 2:
            await finish(database, a_finished_run(user_id, hold_id))
    used = await test_database.fetchval("SELECT metric_value FROM usage_metrics WHERE metric_type = 'runs'")
    sys.stdout.write(f"seed {seed}: {len(held)} holds free {took_s:.1f} s after the last death; {used} booked late\n")
    assert used == len(late)
    assert await has_no_drift(test_database)
