"""Streams that are cut and resumed, and clients that leave before the bill: through gateway, metering and agents."""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pydantic_ai.models
import pytest
from llmock.pytest_plugin import LLMock

from tests.harness.house import House, Person, open_house
from tests.harness.patience import eventually
from tests.harness.services import Place

CUTS = 50
LEAVERS = 40
"""The thousand of the promise are in tests/faults."""
ANSWER = " ".join(f"word{n}" for n in range(120))


@asynccontextmanager
async def a_house_with_a_model(place: Place, llmock: LLMock) -> AsyncGenerator[House, None]:
    llmock.reply(ANSWER, times=None).pace(5)
    models = {
        "openai_api_key": "sk-of-nobody-0123456789",
        "openai_base_url": llmock.base_url("openai"),
        "agents_models": "openai:gpt-4o-mini",
    }
    with pydantic_ai.models.override_allow_model_requests(True):  # noqa: FBT003 - their signature
        async with open_house(place, agents_overrides=models, rate_limit_max_requests=1_000_000) as house:
            yield house


@pytest.fixture
async def house(place: Place, llmock: LLMock) -> AsyncGenerator[House, None]:
    async with a_house_with_a_model(place, llmock) as house:
        yield house


async def be_rich(house: House, person: Person) -> None:
    async with house.place.database.connect_as("venture_operator") as operator:
        await operator.execute(
            "UPDATE user_profiles SET subscription_tier = 'enterprise' WHERE user_id::text = $1", person.id
        )

    async def is_known() -> bool:
        rows: Sequence[Any] = await house.place.database.fetch(
            "SELECT tier FROM agents.entitlements WHERE user_id = $1", person.id
        )
        limits = (await person.client.get("/v1/usage")).json()["metrics"]
        return bool(rows) and rows[0]["tier"] == "enterprise" and limits["runs"]["limit"] is None

    await eventually(is_known, within_s=20)


async def ask(person: Person) -> str:
    answer = await person.client.post("/v1/runs", json={"task": "Say many words.", "max_output_tokens": 1_000})
    assert answer.status_code == 202, answer.text
    return answer.json()["id"]


async def read_until(person: Person, run_id: str, *, after: str, frames: int) -> list[bytes]:
    """Up to so many whole frames behind an id, then the connection is cut; heartbeats are no frames."""
    seen: list[bytes] = []
    headers = {"Last-Event-ID": after} if after else {}
    async with person.client.stream("GET", f"/v1/runs/{run_id}/events", headers=headers) as response:
        rest = b""
        async for chunk in response.aiter_raw():
            *whole, rest = (rest + chunk).split(b"\n\n")
            seen += [it + b"\n\n" for it in whole if b"id: " in it]
            if len(seen) >= frames:
                break
    return seen[:frames]


def last_id(frames: list[bytes]) -> str:
    line = next(it for it in frames[-1].split(b"\n") if it.startswith(b"id: "))
    return line.removeprefix(b"id: ").decode()


def is_ended(frames: list[bytes]) -> bool:
    return bool(frames) and b"event: run.succeeded" in frames[-1]


async def test_a_stream_cut_at_fifty_places_is_the_uninterrupted_one(house: House) -> None:
    chance = random.Random(6)  # noqa: S311 - places to repeat
    async with house.person() as ada:
        await be_rich(house, ada)
        run_id = await ask(ada)
        whole_reader = asyncio.create_task(read_until(ada, run_id, after="", frames=10_000))
        pieces: list[bytes] = []
        while not is_ended(pieces):
            pieces += await read_until(
                ada, run_id, after=last_id(pieces) if pieces else "", frames=chance.randint(1, 4)
            )
        whole = await whole_reader
        assert b"".join(pieces) == b"".join(whole)
        for _ in range(CUTS):  # after completion, at any place
            place = chance.randint(1, len(whole) - 1)
            tail = await read_until(ada, run_id, after=last_id(whole[:place]), frames=10_000)
            assert b"".join(whole[:place] + tail) == b"".join(whole)
        headers = {"Last-Event-ID": last_id(whole)}  # as a browser comes back when a stream has ended
        told = await ada.client.get(f"/v1/runs/{run_id}/events", headers=headers)
        assert (told.status_code, told.content) == (204, b"")


async def test_clients_that_leave_before_the_usage_are_billed_what_was_used(house: House) -> None:
    assert 0.99 <= await billed_share_of_leavers(house, LEAVERS) <= 1.0


async def billed_share_of_leavers(house: House, leavers: int) -> float:
    """Billed over used tokens of runs whose clients hung up just before the usage was told."""
    async with house.person() as ada:
        await be_rich(house, ada)
        for _ in range(0, leavers, 10):
            await asyncio.gather(*(leave_early(ada) for _ in range(10)))

        async def all_settled() -> int:
            usage = (await ada.client.get("/v1/usage")).json()["metrics"]
            is_done = usage["runs"]["used"] == leavers and usage["tokens"]["held"] == 0
            return usage["tokens"]["used"] if is_done else 0

        billed = await eventually(all_settled, within_s=60, every_s=0.5)
        share = billed / (await tokens_of_one(house) * leavers)
        print(f"{leavers} clients left early; billed over used tokens: {share:.4f}")
        return share


async def leave_early(person: Person) -> None:
    """Reads the answer and hangs up at its last words, before the usage is told."""
    run_id = await ask(person)
    try:
        async with person.client.stream("GET", f"/v1/runs/{run_id}/events") as response:
            async for chunk in response.aiter_text():
                if "word11" in chunk:
                    return
    except httpx.HTTPError:
        return


async def tokens_of_one(house: House) -> int:
    """What the provider itself counted for this task: the same for every one of these runs."""
    rows: Sequence[Any] = await house.place.database.fetch(
        "SELECT DISTINCT input_tokens + output_tokens AS tokens, model_used FROM agent_runs"
    )
    assert len(rows) == 1, rows
    return rows[0]["tokens"]
