"""Runs against real HTTP servers that speak the providers' protocols, healthy and ill: each ends as the README says."""

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pydantic_ai.models
import pytest
from llmock.pytest_plugin import LLMock

from libs.common.database import Database
from tests.harness.services import Place
from tests.integration.agents.workshop import (
    agents,
    emitted,
    has_status,
    request_run,
    set_tier,
    stream_of,
    text_of,
)

OPENAI = "openai:gpt-4o-mini"
ANTHROPIC = "anthropic:claude-haiku-4-5"
KEY = "sk-test-key-that-no-provider-knows"


@pytest.fixture(autouse=True)
def model_requests_are_allowed() -> Generator[None, None, None]:
    """Only here, and only towards the local servers: everywhere else a call of a model is an error."""
    with pydantic_ai.models.override_allow_model_requests(True):  # noqa: FBT003 - their signature
        yield


@dataclass(frozen=True, kw_only=True)
class Counter:
    """Where a user's run is ordered, and what it came to is read."""

    place: Place
    database: Database
    llmock: LLMock
    user_id: UUID

    async def run(self, *, settings: dict[str, Any] | None = None, **facts: Any) -> dict[str, Any]:
        """One run from its request to its end, on a service of its own."""
        run_id = await request_run(self.database, self.user_id, **facts)
        async with agents(self.place, **self._settings(settings or {})):
            return await has_status(self.place.database, run_id, "succeeded", "failed", "timed_out", within_s=30)

    def _settings(self, overrides: dict[str, Any]) -> dict[str, Any]:
        return {
            "openai_api_key": KEY,
            "openai_base_url": self.llmock.base_url("openai"),
            "anthropic_api_key": KEY,
            "anthropic_base_url": self.llmock.base_url("anthropic"),
            "agents_models": f"{OPENAI},{ANTHROPIC}",
            "agents_first_token_limit_s": 10,
            "agents_idle_limit_s": 1,
            "agents_retry_budget_s": 8,
            **overrides,
        }

    async def charged(self) -> tuple[str, bool, int, int]:
        """The one `run_finished` there is: exactly one charge or none."""
        (data,) = await emitted(self.place.database, "agents.run_finished.v1")
        return data["outcome"], data["is_billable"], data["input_tokens"], data["output_tokens"]


@pytest.fixture
async def counter(place: Place, database: Database, llmock: LLMock, user_id: UUID) -> Counter:
    await set_tier(database, user_id, "enterprise")
    return Counter(place=place, database=database, llmock=llmock, user_id=user_id)


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
async def test_an_answer_is_streamed_metered_and_priced(counter: Counter, model: str) -> None:
    counter.llmock.reply("A plan in five words.")
    row = await counter.run(model=model)
    assert (row["status"], row["output"], row["model_used"]) == ("succeeded", "A plan in five words.", model)
    assert row["input_tokens"] > 100
    assert row["output_tokens"] > 0
    assert row["cost_micro_usd"] > 0
    events = await stream_of(counter.place.database, row["id"])
    assert text_of(events) == row["output"]
    assert await counter.charged() == ("succeeded", True, row["input_tokens"], row["output_tokens"])
    (asked,) = counter.llmock.requests
    assert KEY not in str(events) + str(row)
    assert asked.status == 200


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize(("status", "times"), [(429, 2), (503, 1), (529, 1)])
async def test_a_busy_provider_is_asked_again(counter: Counter, model: str, status: int, times: int) -> None:
    counter.llmock.fail(status, times=times, retry_after=0.1).reply("At last.")
    row = await counter.run(model=model)
    assert (row["status"], row["output"]) == ("succeeded", "At last.")
    assert len(counter.llmock.requests) == times + 1
    assert (await counter.charged())[:2] == ("succeeded", True)


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize(("status", "code"), [(400, "agents.model_rejected"), (401, "agents.model_unauthorised")])
async def test_a_refusal_is_not_asked_again_and_costs_no_tokens(
    counter: Counter, model: str, status: int, code: str
) -> None:
    counter.llmock.fail(status, times=None)
    row = await counter.run(model=model, settings={"agents_models": model})
    assert (row["status"], row["error"]["code"]) == ("failed", code)
    assert len(counter.llmock.requests) == 1
    assert await counter.charged() == ("failed", True, 0, 0)


async def test_a_provider_that_stays_away_ends_in_the_next_of_the_list(counter: Counter) -> None:
    counter.llmock.fail(503, times=None, retry_after=60, provider="openai").reply(
        "From the other one.", provider="anthropic"
    )
    row = await counter.run()
    assert (row["status"], row["model_used"], row["output"]) == ("succeeded", ANTHROPIC, "From the other one.")


async def test_an_outage_of_all_fails_the_run_after_three_calls_and_charges_no_tokens(counter: Counter) -> None:
    counter.llmock.fail(503, times=None, retry_after=0.05)
    row = await counter.run()
    assert (row["status"], row["error"]["code"]) == ("failed", "agents.model_unavailable")
    assert len(counter.llmock.requests) <= 3
    assert await counter.charged() == ("failed", True, 0, 0)


@pytest.mark.parametrize("model", [OPENAI, ANTHROPIC])
@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("disconnect", "agents.model_unreachable"),
        ("truncate", "agents.model_cut_off"),
        ("stall", "agents.run_timed_out"),
        ("malformed", "agents.model_malformed"),
    ],
)
async def test_an_answer_that_breaks_off_is_never_taken_for_a_whole_one(
    counter: Counter, model: str, fault: str, code: str
) -> None:
    counter.llmock.reply("One two three four five six seven eight nine ten.", times=None)
    faults = {
        "disconnect": counter.llmock.disconnect,
        "truncate": counter.llmock.truncate,
        "malformed": counter.llmock.corrupt,
    }
    if fault == "stall":
        counter.llmock.stall(after_chunks=5, seconds=4, times=None)
    else:
        faults[fault](after_chunks=5, times=None)
    row = await counter.run(model=model)
    assert (row["status"], row["error"]["code"]) == ("timed_out" if fault == "stall" else "failed", code)
    events = await stream_of(counter.place.database, row["id"])
    assert text_of(events) == row["output"]
    outcome, is_billable, _, output_tokens = await counter.charged()
    assert (outcome, is_billable) == (row["status"], fault != "stall")
    assert output_tokens <= 10
    assert len(counter.llmock.requests) == 1


async def test_an_orchestrator_uses_tools_and_answers_with_a_plan(counter: Counter) -> None:
    counter.llmock.call_tool("get_usage", {}).reply(
        '```json\n{"summary": "S", "steps": [{"title": "T", "detail": "D"}]}\n```'
    )
    row = await counter.run(model=OPENAI, agent_type="orchestrator", task="Plan it. " * 200)
    assert row["status"] == "succeeded", row["error"]
    assert '"summary": "S"' in row["output"]
    events = await stream_of(counter.place.database, row["id"])
    assert [it["data"] for it in events if it["type"] == "run.tool"] == [{"name": "get_usage"}]
    assert text_of(events) == row["output"]
    assert len(counter.llmock.requests) == 2
    assert row["input_tokens"] > 300


async def test_an_orchestrator_s_plan_is_mended_once_and_then_given_as_it_came(counter: Counter) -> None:
    counter.llmock.reply("No plan.", times=None)
    row = await counter.run(model=ANTHROPIC, agent_type="orchestrator", task="Plan it. " * 200)
    assert (row["status"], row["output"]) == ("succeeded", "No plan.")
    assert [it["code"] for it in row["warnings"]] == ["agents.plan_invalid"]
    assert len(counter.llmock.requests) == 2


async def test_a_tier_without_models_of_others_is_refused_them_and_pays_nothing(counter: Counter) -> None:
    await set_tier(counter.database, counter.user_id, "free", version=3)
    row = await counter.run(model=OPENAI)
    assert (row["status"], row["error"]["code"]) == ("failed", "agents.model_not_available")
    assert await counter.charged() == ("failed", False, 0, 0)
    assert counter.llmock.requests == []


async def test_without_leave_no_test_reaches_a_model(counter: Counter) -> None:
    with pydantic_ai.models.override_allow_model_requests(False):  # noqa: FBT003 - their signature
        row = await counter.run()
    assert (row["status"], row["error"]["code"]) == ("failed", "agents.internal")
    assert counter.llmock.requests == []
