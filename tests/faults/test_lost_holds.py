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
from tests.integration.metering.accounts import PLANS, a_finished_run, finish, has_no_drift, metering_of, set_tier

ASKERS = 1_000
AT_ONCE = 50
LEASE_S = 60
GRACE_S = 30
_ASK_AND_WAIT = """
import asyncio, sys
from uuid import UUID
from tests.integration.metering.accounts import reserve
from libs.common import database as db

async def main() -> None:
    url, user_id = sys.argv[1], UUID(sys.argv[2])
    async with db.connect(url, application_name="asker") as database:
        for _ in range({at_once}):
            hold = await reserve(database, user_id)
            print(f"seed {seed}: {len(held)} holds free {took_s:.1f} s after the last death; {used} runs booked late")
    assert used == len(late)
    assert await has_no_drift(test_database)
