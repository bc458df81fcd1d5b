"""A run that needs more rounds than its hold affords asks for more before it runs out, and lives with a no."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from uuid import UUID

import httpx
import orjson
import pytest

from libs.common import service_tokens
from libs.common.database import Database
from libs.common.ids import new_id
from services.agents.metering_holds import MeteringHolds
from services.agents.ports import ModelOutput, ModelWish, Round, TextDelta, ToolCall, ToolSpec, UsageReport
from services.agents.prompts.domain import Prompt, held_input_tokens
from services.agents.runs.domain import Usage
from services.agents.settings import Settings
from services.agents.wiring import build
from services.metering.settings import Settings as MeteringSettings
from services.metering.wiring import build as build_metering
from tests.harness.patience import eventually
from tests.harness.services import SERVICE_TOKEN_SECRET, Place, run_service, service_headers
from tests.integration.agents.workshop import has_status, request_run

TASK = "Plan it."
MAX_OUTPUT = 200
PLAN = '{"summary": "S", "steps": [{"title": "T", "detail": "D"}]}'


@dataclass
class CostlyModel:
    """Looks something up once, at the price of nearly all that is held, then answers with a plan."""

    allowed: list[int] = field(default_factory=list[int])
    name: str = "fake-1"

    def choose(self, _wish: ModelWish) -> "CostlyModel":
        return self

    async def stream(
        self,
        prompt: Prompt,  # noqa: ARG002 - the port's signature, as is the next
        *,
        max_output_tokens: int,
        tools: Sequence[ToolSpec] = (),  # noqa: ARG002
        rounds: Sequence[Round] = (),
    ) -> AsyncGenerator[ModelOutput, None]:
        self.allowed.append(max_output_tokens)
        if rounds:
            yield TextDelta(text=PLAN)
            yield UsageReport(usage=Usage(input_tokens=500, output_tokens=20))
        else:
            yield ToolCall(id="1", name="get_usage", arguments={})
            yield UsageReport(usage=Usage(input_tokens=held_input_tokens(TASK, {}), output_tokens=10))


@dataclass
class FakeHolds:
    grants: bool
    asked: list[tuple[UUID, str, int]] = field(default_factory=list[tuple[UUID, str, int]])

    async def extend(self, run_id: UUID, user_id: str, *, tokens: int) -> bool:
        self.asked.append((run_id, user_id, tokens))
        return self.grants


@pytest.mark.parametrize("grants", [True, False])
async def test_more_is_asked_for_before_it_is_used(
    place: Place, database: Database, user_id: UUID, *, grants: bool
) -> None:
    model, holds = CostlyModel(), FakeHolds(grants=grants)
    run_id = await request_run(database, user_id, task=TASK, agent_type="orchestrator", max_output_tokens=MAX_OUTPUT)
    settings = place.settings_for(Settings, "agents")
    async with run_service(build(settings, models=model.choose, holds=holds)):
        row = await has_status(place.database, run_id, "succeeded")
    ((asked_run, asked_user, tokens),) = holds.asked
    assert (asked_run, asked_user) == (run_id, str(user_id))
    assert tokens > held_input_tokens(TASK, {}) + MAX_OUTPUT
    if grants:
        assert model.allowed == [MAX_OUTPUT, MAX_OUTPUT - 10]
        assert '"summary": "S"' in row["output"]
        assert row["warnings"] == []
    else:
        assert model.allowed == [MAX_OUTPUT]
        assert [it["code"] for it in row["warnings"]] == ["agents.budget_spent"]


async def test_metering_holds_more_and_the_run_settles_what_it_used(
    place: Place, database: Database, user_id: UUID
) -> None:
    model, held = CostlyModel(), held_input_tokens(TASK, {}) + MAX_OUTPUT
    async with run_service(build_metering(place.settings_for(MeteringSettings, "metering"))) as metering:
        run_id = new_id()
        body = {"hold_id": str(run_id), "amounts": {"runs": 1, "tokens": held}}
        headers = service_headers("metering", user_id=user_id)
        (await metering.client.post("/internal/holds", json=body, headers=headers)).raise_for_status()
        await request_run(
            database, user_id, run_id=run_id, task=TASK, agent_type="orchestrator", max_output_tokens=MAX_OUTPUT
        )
        settings = place.settings_for(Settings, "agents", metering_url=metering.base_url)
        async with run_service(build(settings, models=model.choose)):
            row = await has_status(place.database, run_id, "succeeded")

            async def is_settled() -> bool:
                state = await place.database.fetchval("SELECT state FROM metering.holds WHERE id = $1", run_id)
                return state == "settled"

            await eventually(is_settled, within_s=30)
    (hold,) = await place.database.fetch("SELECT amounts FROM metering.holds WHERE id = $1", run_id)
    counters = await place.database.fetch(
        "SELECT metric_type, metric_value, held_value FROM usage_metrics WHERE user_id = $1", str(user_id)
    )
    used = {counter["metric_type"]: counter["metric_value"] for counter in counters}
    assert hold["amounts"]["tokens"] > held
    assert row["warnings"] == []
    assert used["tokens"] == row["input_tokens"] + row["output_tokens"] > held
    assert [counter["held_value"] for counter in counters] == [0] * len(counters)


# httpx lets an AttributeError out when metering goes in the very moment in which a connection to it is made.
NO_ANSWERS = [httpx.ConnectTimeout("away"), AttributeError("'NoneType' object has no attribute 'getpeername'")]


@pytest.mark.parametrize(
    ("outcome", "granted"),
    [(200, True), (429, False), (404, False), (503, False), *((failure, False) for failure in NO_ANSWERS)],
)
async def test_whatever_is_not_a_clear_yes_is_a_no(outcome: int | Exception, *, granted: bool) -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        if isinstance(outcome, Exception):
            raise outcome
        return httpx.Response(outcome, json={})

    run_id, user_id = new_id(), new_id()
    async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://metering") as client:
        holds = MeteringHolds(client, secret=SERVICE_TOKEN_SECRET)
        assert await holds.extend(run_id, str(user_id), tokens=5_000) is granted
    (request,) = seen
    assert (request.method, request.url.path) == ("PUT", f"/internal/holds/{run_id}")
    assert orjson.loads(request.content) == {"amounts": {"tokens": 5_000}}
    token = request.headers["authorization"].removeprefix("Bearer ")
    assert service_tokens.Verifier(SERVICE_TOKEN_SECRET, audience="metering").verify(token).user_id == user_id
