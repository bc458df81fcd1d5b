"""Users judge, mark, search and take away their runs; later prompts learn from it."""

from collections.abc import AsyncGenerator
from uuid import UUID

import pytest

from libs.common.database import Database
from libs.common.ids import new_id
from services.agents.runs.jobs import EventSweeper
from tests.harness.services import Place, RunningService, service_headers
from tests.integration.agents.workshop import FakeModel, agents, get, has_status, request_run, stream_of


@pytest.fixture
def model() -> FakeModel:
    return FakeModel()


@pytest.fixture
async def service(place: Place, model: FakeModel) -> AsyncGenerator[RunningService, None]:
    async with agents(place, model) as running:
        yield running


async def judge(service: RunningService, user_id: UUID, run_id: UUID, verdict: str, detail: str | None = None) -> int:
    answer = await service.client.post(
        f"/internal/runs/{run_id}/feedback",
        json={"verdict": verdict, "detail": detail},
        headers=service_headers("agents", user_id=user_id),
    )
    return answer.status_code


async def test_a_verdict_moves_the_rates_of_its_atoms_once_and_may_be_changed(
    place: Place, service: RunningService, database: Database, user_id: UUID
) -> None:
    run_id = await request_run(database, user_id)
    row = await has_status(place.database, run_id, "succeeded")
    assert row["atoms"]
    counts = "SELECT sum(approvals) AS approvals, sum(rejections) AS rejections FROM prompt_atoms"
    for verdict, approvals, rejections in (("approved", 1, 0), ("approved", 1, 0), ("rejected", 0, 1)):
        assert await judge(service, user_id, run_id, verdict) == 200
        (sums,) = await place.database.fetch(counts)
        assert sums["approvals"] == approvals * len(row["atoms"])
        assert sums["rejections"] == rejections * len(row["atoms"])
    assert await judge(service, new_id(), run_id, "approved") == 404
    assert (await get(service, user_id, f"/internal/runs/{run_id}/feedback"))["verdict"] == "rejected"


async def test_what_was_wrong_is_told_to_later_prompts_of_the_same_user(
    place: Place, service: RunningService, database: Database, model: FakeModel, user_id: UUID
) -> None:
    first = await request_run(database, user_id)
    await has_status(place.database, first, "succeeded")
    assert await judge(service, user_id, first, "rejected", "Too many steps.") == 200
    for somebody in (user_id, new_id()):
        await has_status(place.database, await request_run(database, somebody), "succeeded")
    _, mine, theirs = model.prompts
    assert "Too many steps." in mine.system
    assert "Too many steps." not in theirs.system


async def test_runs_are_filtered_searched_bookmarked_and_exported(
    place: Place, service: RunningService, database: Database, user_id: UUID
) -> None:
    plain = await request_run(database, user_id, task="Price the product.")
    other = await request_run(database, user_id, task="Write a launch mail.", agent_type="generator")
    await request_run(database, new_id(), task="Price of somebody else.")
    for run_id in (plain, other):
        await has_status(place.database, run_id, "succeeded")
    marked = await service.client.put(
        f"/internal/runs/{other}/bookmark",
        json={"bookmarked": True},
        headers=service_headers("agents", user_id=user_id),
    )
    assert marked.json()["is_bookmarked"] is True
    for query, expected in (
        ({"q": "PRICE"}, [plain]),
        ({"q": "%"}, []),
        ({"agent_type": "generator"}, [other]),
        ({"bookmarked": "true"}, [other]),
        ({"status": "succeeded"}, [other, plain]),
        ({"status": "failed"}, []),
        ({"since": "2020-01-01T00:00:00Z", "until": "2020-01-02T00:00:00Z"}, []),
    ):
        found = await get(service, user_id, "/internal/runs", **query)
        assert [it["id"] for it in found["items"]] == [str(run_id) for run_id in expected], query
    taken = await service.client.get(
        "/internal/runs/export?format=csv", headers=service_headers("agents", user_id=user_id)
    )
    assert taken.headers["content-type"].startswith("text/csv")
    assert len(taken.text.splitlines()) == 3


async def test_old_streams_are_forgotten_except_their_ends(
    place: Place, service: RunningService, database: Database, user_id: UUID
) -> None:
    old, young = await request_run(database, user_id), await request_run(database, user_id)
    for run_id in (old, young):
        await has_status(place.database, run_id, "succeeded")
    await place.database.execute("UPDATE agent_runs SET finished_at = now() - interval '31 days' WHERE id = $1", old)
    await place.database.execute(
        "UPDATE agents.run_events SET created_at = now() - interval '31 days' WHERE run_id = $1", old
    )
    before = await stream_of(place.database, young)
    await EventSweeper(database=database, keep_days=30).sweep_once()
    assert [it["type"] for it in await stream_of(place.database, old)] == ["run.succeeded"]
    assert await stream_of(place.database, young) == before
