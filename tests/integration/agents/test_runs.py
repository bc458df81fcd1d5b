"""A run from its request to its end, through the whole service."""

from uuid import UUID

import pytest

from libs.common.database import Database
from libs.common.ids import new_id
from services.agents.ports import ModelFailed
from services.agents.runs.domain import RunError
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.services import Place, service_headers
from tests.integration.agents.workshop import (
    TERMINAL,
    FakeModel,
    a_request,
    agents,
    agents_database,
    emitted,
    get,
    has_status,
    request_run,
    send,
    stream_of,
    text_of,
)


@pytest.fixture
def user_id() -> UUID:
    return new_id()


@pytest.fixture
async def database(test_database: TestDatabase):  # noqa: ANN201
    async with agents_database(test_database) as database:
        yield database


async def test_a_requested_run_is_answered_by_the_offline_model(place: Place, user_id: UUID) -> None:
    test_database = place.database
    async with agents(place) as service:
        event = a_request(user_id, profile={"stack": ["python"], "kpi_focus": "weekly invoices sent"})
        await send(place, event)
        await eventually(lambda: has_row(test_database, event.run_id))
        row = await has_status(test_database, event.run_id, "succeeded")
        events = await stream_of(test_database, event.run_id)
        assert [it["seq"] for it in events] == list(range(1, len(events) + 1))
        assert [it["type"] for it in events[:2]] == ["run.queued", "run.started"]
        assert [it["type"] for it in events[-2:]] == ["run.usage", "run.succeeded"]
        assert sum(it["type"] in TERMINAL for it in events) == 1
        assert text_of(events) == row["output"]
        assert "weekly invoices sent" in row["output"]

        run = await get(service, user_id, f"/internal/runs/{event.run_id}")
        assert run["status"] == "succeeded"
        assert run["model_used"] == "offline"
        assert run["usage"]["input_tokens"] > 0
        assert 0 < run["usage"]["output_tokens"] <= 1_000
        assert run["cost_usd"] == 0
        assert run["error"] is None

        queued, delta = events[0]["created_at"], events[2]["created_at"]
        print(f"\nqueued to first delta: {(delta - queued).total_seconds() * 1000:.1f} ms")  # noqa: T201
    finished = await emitted(test_database, "agents.run_finished.v1")
    assert [(it["run_id"], it["outcome"], it["is_billable"]) for it in finished] == [
        (str(event.run_id), "succeeded", True)
    ]
    started = await emitted(test_database, "agents.run_started.v1")
    assert [(it["run_id"], it["attempt"]) for it in started] == [(str(event.run_id), 1)]


async def has_row(test_database: TestDatabase, run_id: UUID) -> bool:
    return bool(await test_database.fetchval("SELECT count(*) FROM agent_runs WHERE id = $1", run_id))
