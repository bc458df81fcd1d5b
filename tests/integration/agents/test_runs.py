"""A run from its request to its end, through the whole service."""

import asyncio
from typing import Any
from uuid import UUID

import orjson
import pytest

from libs.common import redis
from libs.common.database import Database
from libs.common.ids import new_id
from services.agents.ports import ModelFailed
from services.agents.runs.domain import RunError, Usage
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.services import Place, service_headers
from tests.integration.agents.workshop import (
    TERMINAL,
    FakeModel,
    a_request,
    agents,
    emitted,
    get,
    has_status,
    request_run,
    run_row,
    send,
    stream_of,
    text_of,
)

FINISHED = "agents.run_finished.v1"


async def has_row(test_database: TestDatabase, run_id: UUID) -> bool:
    return bool(await test_database.fetchval("SELECT count(*) FROM agent_runs WHERE id = $1", run_id))


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
    finished = await emitted(test_database, FINISHED)
    assert [(it["run_id"], it["outcome"], it["is_billable"]) for it in finished] == [
        (str(event.run_id), "succeeded", True)
    ]
    started = await emitted(test_database, "agents.run_started.v1")
    assert [(it["run_id"], it["attempt"]) for it in started] == [(str(event.run_id), 1)]


async def test_a_run_requested_twice_is_one_run(place: Place, user_id: UUID) -> None:
    async with agents(place):
        first = a_request(user_id)
        again = a_request(user_id, run_id=first.run_id)
        for event in (first, first, again):
            await send(place, event)
        await eventually(lambda: has_row(place.database, first.run_id))
        await has_status(place.database, first.run_id, "succeeded")
        last = a_request(user_id)
        await send(place, last)
        await eventually(lambda: has_row(place.database, last.run_id))
        await has_status(place.database, last.run_id, "succeeded")
    assert await place.database.fetchval("SELECT count(*) FROM agent_runs") == 2
    assert len(await emitted(place.database, FINISHED)) == 2


async def test_time_to_the_first_delta_is_measured(place: Place, database: Database) -> None:
    async with agents(place):
        took_ms: list[float] = []
        for _ in range(20):
            event = a_request(new_id())
            await send(place, event)
            await eventually(lambda run_id=event.run_id: has_row(place.database, run_id))
            await has_status(place.database, event.run_id, "succeeded")
            rows = await stream_of(place.database, event.run_id)
            took_ms.append((rows[2]["created_at"] - rows[0]["created_at"]).total_seconds() * 1_000)
    took_ms.sort()
    print(f"\nqueued to first delta: p50 {took_ms[10]:.1f} ms, p95 {took_ms[18]:.1f} ms, max {took_ms[-1]:.1f} ms")


async def test_the_provider_s_tokens_and_cost_are_what_is_told(place: Place, database: Database, user_id: UUID) -> None:
    async with agents(place, FakeModel()) as service:
        run_id = await request_run(database, user_id)
        await has_status(place.database, run_id, "succeeded")
        answer = await service.client.get(
            f"/internal/runs/{run_id}", headers=service_headers("agents", user_id=user_id)
        )
    assert b'"cost_usd":0.001234,' in answer.content
    assert answer.json()["usage"] == {"input_tokens": 11, "output_tokens": 7}
    [finished] = await emitted(place.database, FINISHED)
    assert (finished["input_tokens"], finished["output_tokens"], finished["cost_micro_usd"]) == (11, 7, 1_234)


@pytest.mark.parametrize(("reported", "tokens"), [(None, (0, 0)), (Usage(input_tokens=5, output_tokens=2), (5, 2))])
async def test_a_failed_run_costs_only_what_the_provider_reported(
    place: Place, database: Database, user_id: UUID, reported: Usage | None, tokens: tuple[int, int]
) -> None:
    failure = ModelFailed(RunError(code="agents.model_unavailable", detail="The model cannot be reached."))
    async with agents(place, FakeModel(usage=reported, failure=failure)):
        run_id = await request_run(database, user_id)
        row = await has_status(place.database, run_id, "failed")
    assert row["error"] == {"code": "agents.model_unavailable", "detail": "The model cannot be reached."}
    [finished] = await emitted(place.database, FINISHED)
    assert finished["is_billable"] is True
    assert (finished["input_tokens"], finished["output_tokens"]) == tokens


async def test_a_bug_in_a_run_ends_that_run_and_costs_nothing(place: Place, database: Database, user_id: UUID) -> None:
    model = FakeModel(failure=RuntimeError("surprise"))
    async with agents(place, model):
        run_id = await request_run(database, user_id)
        row = await has_status(place.database, run_id, "failed")
        assert row["error"]["code"] == "agents.internal"
        model.failure = None
        next_id = await request_run(database, user_id)
        await has_status(place.database, next_id, "succeeded")
    assert [it["is_billable"] for it in await emitted(place.database, FINISHED)] == [False, True]


async def test_a_silent_model_times_out_at_no_charge(place: Place, database: Database, user_id: UUID) -> None:
    async with agents(place, FakeModel(waits=True), agents_idle_limit_s=0.3):
        run_id = await request_run(database, user_id)
        row = await has_status(place.database, run_id, "timed_out")
    assert row["error"]["code"] == "agents.run_timed_out"
    assert row["output"] == "Hello there."
    [finished] = await emitted(place.database, FINISHED)
    assert (finished["outcome"], finished["is_billable"]) == ("timed_out", False)


async def test_a_model_that_never_stops_talking_times_out(place: Place, database: Database, user_id: UUID) -> None:
    async with agents(place, FakeModel(pieces=["word "] * 1_000_000), agents_total_limit_s=0.5):
        run_id = await request_run(database, user_id)
        await has_status(place.database, run_id, "timed_out")


async def test_text_that_the_database_cannot_hold_is_mended(place: Place, database: Database, user_id: UUID) -> None:
    async with agents(place, FakeModel(pieces=["a\x00b", "\ud800c"])):
        run_id = await request_run(database, user_id)
        row = await has_status(place.database, run_id, "succeeded")
    assert row["output"] == "ab?c"


async def test_many_small_pieces_become_few_rows_and_the_first_comes_at_once(
    place: Place, database: Database, user_id: UUID
) -> None:
    model = FakeModel(pieces=["first"], waits=True, last_pieces=["x"] * 5_000)
    async with agents(place, model):
        run_id = await request_run(database, user_id)

        async def has_first() -> bool:
            return text_of(await stream_of(place.database, run_id)) == "first"

        await eventually(has_first, within_s=2)
        model.go_on.set()
        row = await has_status(place.database, run_id, "succeeded")
    deltas = [it for it in await stream_of(place.database, run_id) if it["type"] == "run.delta"]
    assert row["output"] == "first" + "x" * 5_000
    assert len(deltas) < 50


async def test_a_running_run_is_cancelled_within_a_second_and_pays_for_its_tokens_so_far(
    place: Place, database: Database, user_id: UUID
) -> None:
    model = FakeModel(waits=True)
    async with agents(place, model) as service:
        run_id = await request_run(database, user_id)
        await has_status(place.database, run_id, "running")
        await eventually(lambda: is_true(model.at_work))
        answer = await service.client.post(
            f"/internal/runs/{run_id}/cancel", headers=service_headers("agents", user_id=user_id)
        )
        assert answer.status_code == 200
        row = await has_status(place.database, run_id, "cancelled", within_s=1)
        assert model.at_work == 0
        again = await service.client.post(
            f"/internal/runs/{run_id}/cancel", headers=service_headers("agents", user_id=user_id)
        )
        assert again.json()["status"] == "cancelled"
    assert row["output"] == "Hello there."
    assert row["output_tokens"] == 3
    [finished] = await emitted(place.database, FINISHED)
    assert (finished["outcome"], finished["is_billable"]) == ("cancelled", True)
    assert finished["input_tokens"] > 0


async def is_true(value: Any) -> bool:
    return bool(value)


async def test_a_queued_run_is_cancelled_at_once_and_free(place: Place, database: Database, user_id: UUID) -> None:
    model = FakeModel(waits=True)
    async with agents(place, model) as service:
        first = await request_run(database, user_id)
        await has_status(place.database, first, "running")
        second = await request_run(database, user_id)  # the free tier runs one at a time
        answer = await service.client.post(
            f"/internal/runs/{second}/cancel", headers=service_headers("agents", user_id=user_id)
        )
        assert answer.json()["status"] == "cancelled"
        events = await get(service, user_id, f"/internal/runs/{second}/events")
        assert [it["type"] for it in events["items"]] == ["run.queued", "run.cancelled"]
        assert events["is_terminal"] is True
        model.go_on.set()
        await has_status(place.database, first, "succeeded")
    finished = {it["run_id"]: it for it in await emitted(place.database, FINISHED)}
    assert finished[str(second)]["is_billable"] is False
    assert finished[str(second)]["model_used"] == "none"


async def test_events_are_paged_and_say_when_nothing_follows(place: Place, database: Database, user_id: UUID) -> None:
    async with agents(place, FakeModel()) as service:
        run_id = await request_run(database, user_id)
        await has_status(place.database, run_id, "succeeded")
        path = f"/internal/runs/{run_id}/events"
        first = await get(service, user_id, path, limit=2)
        assert [it["seq"] for it in first["items"]] == [1, 2]
        assert first["is_terminal"] is False
        rest = await get(service, user_id, path, after=2)
        assert rest["items"][0]["seq"] == 3
        assert rest["items"][-1]["type"] == "run.succeeded"
        assert rest["is_terminal"] is True
        beyond = await get(service, user_id, path, after=rest["items"][-1]["seq"])
        assert beyond == {"items": [], "is_terminal": True}


async def test_runs_are_listed_newest_first_page_by_page(place: Place, database: Database, user_id: UUID) -> None:
    async with agents(place, FakeModel()) as service:
        asked = [await request_run(database, user_id) for _ in range(5)]
        await request_run(database, new_id())
        first = await get(service, user_id, "/internal/runs", limit=3)
        second = await get(service, user_id, "/internal/runs", limit=3, cursor=first["next_cursor"])
        assert [it["id"] for it in (*first["items"], *second["items"])] == [str(it) for it in reversed(asked)]
        assert second["next_cursor"] is None
        broken = await service.client.get(
            "/internal/runs", params={"cursor": "%%%"}, headers=service_headers("agents", user_id=user_id)
        )
        assert broken.status_code == 400
        assert broken.json()["code"] == "agents.cursor_malformed"


async def test_nobody_sees_or_ends_another_s_run(place: Place, database: Database, user_id: UUID) -> None:
    model = FakeModel(waits=True)
    async with agents(place, model) as service:
        run_id = await request_run(database, user_id)
        await has_status(place.database, run_id, "running")
        for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
            theirs = await service.client.request(
                method, f"/internal/runs/{run_id}{path}", headers=service_headers("agents", user_id=new_id())
            )
            nobodys = await service.client.request(
                method, f"/internal/runs/{new_id()}{path}", headers=service_headers("agents", user_id=new_id())
            )
            assert theirs.status_code == nobodys.status_code == 404
            assert theirs.json()["code"] == nobodys.json()["code"] == "agents.run_not_found"
        assert (await run_row(place.database, run_id))["cancel_requested_at"] is None
        model.go_on.set()
        await has_status(place.database, run_id, "succeeded")


async def test_events_are_mirrored_live_through_redis(place: Place, database: Database, user_id: UUID) -> None:
    model = FakeModel(waits=True)
    event = a_request(user_id)
    seen: list[dict[str, Any]] = []
    async with agents(place, model), redis.connect(place.redis_url, name="test") as client:
        pubsub: Any = client.pubsub()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        await pubsub.subscribe(f"run:{event.run_id}")
        run_id = await request_run(database, user_id, run_id=event.run_id)
        async with asyncio.timeout(10):
            while not seen or seen[-1]["type"] not in TERMINAL:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.2)
                if message is not None:
                    seen.append(orjson.loads(message["data"]))
                    model.go_on.set()
        await pubsub.aclose()
    stored = [{key: it[key] for key in ("seq", "type", "data")} for it in await stream_of(place.database, run_id)]
    assert seen == stored[1:]  # `run.queued` is written by the consumer, before anybody can know of the run


@pytest.mark.parametrize("failure", [None, ModelFailed(RunError(code="agents.model_refused", detail="No."))])
async def test_who_waits_for_the_end_is_sent_the_run_as_it_is_read(
    place: Place, database: Database, user_id: UUID, failure: ModelFailed | None
) -> None:
    event = a_request(user_id)
    async with (
        agents(place, FakeModel(failure=failure)) as service,
        redis.connect(place.redis_url, name="test") as client,
    ):
        pubsub: Any = client.pubsub()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        await pubsub.subscribe(f"run-end:{event.run_id}")
        await request_run(database, user_id, run_id=event.run_id)
        message = None
        async with asyncio.timeout(10):
            while message is None:
                message = await pubsub.get_message(ignore_subscribe_messages=True, timeout=0.2)
        await pubsub.aclose()
        headers = service_headers("agents", user_id=user_id)
        read = await service.client.get(f"/internal/runs/{event.run_id}", headers=headers)
    assert message["data"] == read.content


async def test_the_gateway_is_told_how_far_runs_are_and_which_have_ended(
    place: Place, database: Database, user_id: UUID
) -> None:
    model = FakeModel(waits=True)
    async with agents(place, model) as service:
        run_id = await request_run(database, user_id)
        await has_status(place.database, run_id, "running")
        asked = {"run_ids": [str(run_id), str(new_id())]}
        path, headers = "/internal/admin/runs/heads", service_headers("agents")
        said = (await service.client.post(path, json=asked, headers=headers)).json()
        assert (list(said["heads"]), said["ended"]) == ([str(run_id)], [])
        model.go_on.set()
        await has_status(place.database, run_id, "succeeded")
        said = (await service.client.post(path, json=asked, headers=headers)).json()
        assert said == {"heads": {str(run_id): len(await stream_of(place.database, run_id))}, "ended": [str(run_id)]}


async def test_without_redis_runs_end_all_the_same(place: Place, database: Database, user_id: UUID) -> None:
    async with agents(place, redis_url="redis://127.0.0.1:1/0") as service:
        run_id = await request_run(database, user_id)
        await has_status(place.database, run_id, "succeeded", within_s=3)
        ready = (await service.client.get("/health/ready")).json()
        mirror = next(it for it in ready["checks"] if it["name"] == "live_mirror")
        assert (mirror["status"], mirror["value"]) == ("ok", "away")


async def test_a_run_uses_the_user_s_template_sliders_and_atoms(
    place: Place, database: Database, user_id: UUID
) -> None:
    model = FakeModel()
    async with agents(place, model) as service:
        headers = service_headers("agents", user_id=user_id)
        vibe = await service.client.put(
            "/internal/vibe-config", json={"playfulness": 90, "revenue_focus": 10}, headers=headers
        )
        assert vibe.json() == {"playfulness": 90, "revenue_focus": 10, "investor_perspective": 50}
        created = await service.client.post(
            "/internal/templates", json={"name": "Memo", "instructions": "Write it as a memo."}, headers=headers
        )
        assert created.status_code == 201
        body = {"task": "Price it.", "template_id": created.json()["id"], "vibe": {"revenue_focus": 80}}
        preview = (await service.client.post("/internal/prompts/preview", json=body, headers=headers)).json()
        run_id = await request_run(database, user_id, **body)
        await has_status(place.database, run_id, "succeeded")
    [prompt] = model.prompts
    assert (prompt.system, prompt.user) == (preview["system"], preview["user"])
    assert "Write it as a memo." in prompt.system
    assert {"tone.playful", "goal.revenue"} <= set(preview["atoms"])


async def test_a_run_with_a_template_that_is_gone_fails_and_says_so(
    place: Place, database: Database, user_id: UUID
) -> None:
    async with agents(place, FakeModel()):
        run_id = await request_run(database, user_id, template_id=new_id())
        row = await has_status(place.database, run_id, "failed")
    assert row["error"]["code"] == "agents.template_not_found"
