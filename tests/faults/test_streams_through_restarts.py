"""Streams cut at random places while gateways and workers are killed and stopped: nothing missing, nothing twice."""

import asyncio
import os
import random
import secrets
import signal
from contextlib import suppress

import pytest
from llmock.chaos import StreamChaos
from llmock.testing import LLMockServer

from libs.common.database import Database
from ops.failure import Failure
from ops.stack.stack import Stack
from tests.faults.streams import Reader, event_id
from tests.faults.test_runs_under_kills import Person, all_ended, is_enterprise
from tests.harness.patience import eventually

RUNS = 5
CUTS = 50


async def read_in_pieces(reader: Reader, chance: random.Random) -> None:
    while not reader.has_ended:
        before = len(reader.frames)
        await reader.read_some(chance.randint(1, 2))  # so short that there are enough, whoever is killed
        if len(reader.frames) == before:
            await asyncio.sleep(0.3)


async def disturb(stack: Stack, chance: random.Random, done: asyncio.Event) -> list[str]:
    """Gateways are killed, workers killed and, more often, stopped in order, until the streams have ended."""
    disturbed: list[str] = []
    choices = [("gateway", signal.SIGKILL), ("gateway", signal.SIGTERM), ("agents", signal.SIGTERM)]
    while not done.is_set():
        await asyncio.sleep(chance.uniform(2, 5))
        name, how = chance.choice(choices) if len(disturbed) != 1 else ("agents", signal.SIGKILL)
        with suppress(Failure, ProcessLookupError):
            number = chance.randint(1, 2)
            os.kill(stack.pid(name, number), how)
            disturbed.append(f"{name}-{number} {how.name}")
    return disturbed


async def test_a_stream_in_pieces_is_byte_for_byte_the_whole_one(
    wide_stack: Stack, provider: LLMockServer, operator: Database, request: pytest.FixtureRequest
) -> None:
    seed = request.config.getoption("--seed") or secrets.randbelow(1_000_000)
    print(f"seed {seed}; repeat with --seed {seed}")
    chance = random.Random(seed)  # noqa: S311 - places and a schedule to repeat
    provider.state.stream_chaos = StreamChaos(chunk_delay_ms=400)
    environment = wide_stack.environment()
    gateways = environment["GATEWAY_URLS"].split(",")
    person = Person(gateways, environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"])
    await person.sign_up()
    async with operator.transaction() as conn:
        await conn.execute(
            "UPDATE user_profiles SET subscription_tier = 'enterprise' WHERE user_id::text = $1", person.user_id
        )
    await eventually(lambda: is_enterprise(operator, person.user_id), within_s=20)
    run_ids = await asyncio.gather(*(person.ask(number) for number in range(RUNS)))
    readers = [Reader(gateways, person.headers, run_id) for run_id in run_ids]

    done = asyncio.Event()
    disturbing = asyncio.create_task(disturb(wide_stack, chance, done))
    async with asyncio.timeout(300):
        await asyncio.gather(*(read_in_pieces(reader, chance) for reader in readers))
    done.set()
    disturbed = await disturbing
    assert await all_ended(operator, list(run_ids))

    for reader in readers:
        whole = Reader(gateways, person.headers, reader.run_id)
        while not whole.has_ended:
            await whole.read_some(10_000)
        assert reader.frames == whole.frames
        assert [int(event_id(frame)) for frame in whole.frames] == list(range(1, len(whole.frames) + 1))
        for _ in range(CUTS // RUNS):  # and behind any place after the end
            place = chance.randint(1, len(whole.frames) - 1)
            tail = Reader(gateways, person.headers, reader.run_id)
            tail.frames = whole.frames[:place]
            while not tail.has_ended:
                await tail.read_some(10_000)
            assert tail.frames == whole.frames
    cuts = sum(reader.cuts for reader in readers)
    print(f"{cuts} pieces of {RUNS} streams, {sum(len(it.frames) for it in readers)} frames, through {disturbed}")
    await person.close()
    assert cuts >= CUTS
    assert len(disturbed) >= 3
