"""Webhooks: only what is signed is stored, once, and proposes a run where the user and the plan want one."""

import hashlib
import hmac
import time
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest

from libs.common.clock import system_clock
from libs.common.database import Database
from libs.common.events.metering import HoldDenied, HoldGranted
from libs.common.ids import new_id
from services.agents import consumers
from tests.harness.database import TestDatabase
from tests.harness.services import Place, RunningService, service_headers
from tests.integration.agents.workshop import FakeModel, agents, emitted, get, has_status, set_tier

PUSH = {
    "ref": "refs/heads/main",
    "repository": {"full_name": "acme/app", "private": True},
    "commits": [{"message": "Fix the invoice total\n\nlong text"}],
}


@pytest.fixture
async def service(place: Place) -> AsyncGenerator[RunningService, None]:
    async with agents(place, FakeModel()) as running:
        yield running


async def an_endpoint(service: RunningService, user_id: UUID, kind: str, **wishes: bool) -> dict[str, Any]:
    answer = await service.client.post(
        "/internal/webhook-endpoints",
        json={"kind": kind, "name": "ours", **wishes},
        headers=service_headers("agents", user_id=user_id),
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


def signature(secret: str, signed: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()


async def deliver(
    service: RunningService, endpoint: dict[str, Any], headers: dict[str, str], body: bytes
) -> httpx.Response:
    return await service.client.post(
        f"/internal/webhooks/{endpoint['kind']}/{endpoint['id']}",
        content=body,
        headers={**service_headers("agents"), "Content-Type": "application/json", **headers},
    )


def github_headers(secret: str, body: bytes, *, delivery_id: str = "d-1", event: str = "push") -> dict[str, str]:
    return {
        "X-Hub-Signature-256": signature(secret, body),
        "X-GitHub-Event": event,
        "X-GitHub-Delivery": delivery_id,
    }


def generic_headers(secret: str, body: bytes, *, skew_s: int = 0) -> dict[str, str]:
    timestamp = str(int(time.time()) + skew_s)
    return {"X-Timestamp": timestamp, "X-Signature-256": signature(secret, timestamp.encode() + b"." + body)}


async def stored(test_database: TestDatabase) -> list[dict[str, Any]]:
    return await test_database.fetch("SELECT * FROM background_events ORDER BY id")


async def test_a_signed_github_push_is_stored_once_with_a_summary(
    place: Place, service: RunningService, user_id: UUID
) -> None:
    endpoint = await an_endpoint(service, user_id, "github")
    body = orjson.dumps(PUSH)
    headers = github_headers(endpoint["secret"], body)
    first = await deliver(service, endpoint, headers, body)
    again = await deliver(service, endpoint, headers, body)
    assert (first.status_code, again.status_code) == (202, 200)
    assert again.json() == {"status": "duplicate"}
    [row] = await stored(place.database)
    assert (row["source"], row["kind"], row["delivery_id"]) == ("github", "push", "d-1")
    assert row["payload"] == {
        "repository": "acme/app",
        "ref": "refs/heads/main",
        "commits": ["Fix the invoice total"],
    }
    [event] = await emitted(place.database, "agents.background_event_received.v1")
    assert event["background_event_id"] == first.json()["id"]
    listed = await get(service, user_id, "/internal/background-events")
    assert [it["id"] for it in listed["items"]] == [first.json()["id"]]
    assert (await get(service, new_id(), "/internal/background-events"))["items"] == []


@pytest.mark.parametrize("kind", ["github", "gitlab", "generic"])
async def test_what_is_not_signed_by_the_endpoint_s_secret_leaves_no_row(
    place: Place, service: RunningService, user_id: UUID, kind: str
) -> None:
    endpoint = await an_endpoint(service, user_id, kind)
    body, wrong = orjson.dumps(PUSH), "another-secret"
    attempts: list[dict[str, str]] = [{}]
    if kind == "github":
        valid = github_headers(endpoint["secret"], body)
        attempts += [
            github_headers(wrong, body),
            github_headers(endpoint["secret"], body + b" "),
            {"X-Hub-Signature-256": valid["X-Hub-Signature-256"].removeprefix("sha256=")},
            {"X-Hub-Signature-256": "sha256=" + "é" * 64},
            {"X-Hub-Signature": "sha1=" + "0" * 40},
        ]
    elif kind == "gitlab":
        attempts += [{"X-Gitlab-Token": wrong}, {"X-Gitlab-Token": ""}, {"X-Gitlab-Token": endpoint["secret"] + "x"}]
    else:
        attempts += [
            generic_headers(wrong, body),
            generic_headers(endpoint["secret"], body, skew_s=-301),
            generic_headers(endpoint["secret"], body, skew_s=302),
            {"X-Timestamp": "NaN", "X-Signature-256": signature(endpoint["secret"], b"NaN." + body)},
            {"X-Timestamp": "-5", "X-Signature-256": signature(endpoint["secret"], b"-5." + body)},
        ]
    for headers in attempts:
        raw = {name: value.encode() for name, value in headers.items()}
        answer = await deliver(service, endpoint, raw, body)  # pyright: ignore[reportArgumentType] - bytes pass as is
        assert answer.status_code == 401, headers
        assert answer.json()["code"] == "agents.webhook_signature_invalid"
    assert await stored(place.database) == []


async def test_unknown_endpoints_and_another_kind_s_path_are_not_found(
    place: Place, service: RunningService, user_id: UUID
) -> None:
    endpoint = await an_endpoint(service, user_id, "gitlab")
    headers = {"X-Gitlab-Token": endpoint["secret"]}
    unknown = await deliver(service, {"kind": "gitlab", "id": str(new_id())}, headers, b"{}")
    other_kind = await deliver(service, {**endpoint, "kind": "generic"}, headers, b"{}")
    assert unknown.status_code == other_kind.status_code == 404
    assert await stored(place.database) == []


async def test_a_gitlab_token_and_a_generic_signature_open_the_door(
    place: Place, service: RunningService, user_id: UUID
) -> None:
    gitlab = await an_endpoint(service, user_id, "gitlab")
    headers = {"X-Gitlab-Token": gitlab["secret"], "X-Gitlab-Event": "Push Hook", "Idempotency-Key": "g-1"}
    assert (await deliver(service, gitlab, headers, orjson.dumps(PUSH))).status_code == 202
    generic = await an_endpoint(service, user_id, "generic")
    body = orjson.dumps({"id": "evt_1", "type": "deploy.finished", "title": "v12"})
    # The sender tries again later: another timestamp and signature, the same event.
    for skew_s, status in ((-100, 202), (0, 200)):
        answer = await deliver(service, generic, generic_headers(generic["secret"], body, skew_s=skew_s), body)
        assert answer.status_code == status
    assert [(row["kind"], row["delivery_id"]) for row in await stored(place.database)] == [
        ("Push Hook", "g-1"),
        ("deploy.finished", "evt_1"),
    ]


async def test_signed_nonsense_is_refused_after_the_signature(
    place: Place, service: RunningService, user_id: UUID
) -> None:
    endpoint = await an_endpoint(service, user_id, "github")
    for body in (b"payload=%7B%7D", b"[]", b"\xff\xfe", b""):
        answer = await deliver(service, endpoint, github_headers(endpoint["secret"], body), body)
        assert (answer.status_code, answer.json()["code"]) == (400, "agents.webhook_unreadable")
    assert await stored(place.database) == []


async def test_the_secret_is_shown_once(service: RunningService, user_id: UUID) -> None:
    endpoint = await an_endpoint(service, user_id, "github")
    listed = await get(service, user_id, "/internal/webhook-endpoints")
    assert [it["id"] for it in listed["items"]] == [endpoint["id"]]
    assert endpoint["secret"] not in str(listed)


PULL: dict[str, Any] = {
    "action": "opened",
    "number": 7,
    "pull_request": {"title": "Fix the invoice total", "state": "open", "labels": []},
    "repository": {"full_name": "acme/app"},
}


async def deliver_pull_request(service: RunningService, endpoint: dict[str, Any]) -> httpx.Response:
    body = orjson.dumps(PULL)
    return await deliver(service, endpoint, github_headers(endpoint["secret"], body, event="pull_request"), body)


async def propose(place: Place, service: RunningService, user_id: UUID, **wishes: bool) -> UUID:
    endpoint = await an_endpoint(service, user_id, "github", auto_suggest=True, **wishes)
    assert (await deliver_pull_request(service, endpoint)).status_code == 202
    [proposed] = await emitted(place.database, "agents.run_proposed.v1")
    assert proposed["user_id"] == str(user_id)
    assert proposed["max_tokens"] > 1_024
    return UUID(proposed["run_id"])


async def test_a_push_that_changes_no_schema_proposes_nothing(
    place: Place, service: RunningService, database: Database, user_id: UUID
) -> None:
    await set_tier(database, user_id, "pro")
    endpoint = await an_endpoint(service, user_id, "github", auto_suggest=True)
    body = orjson.dumps(PUSH)
    await deliver(service, endpoint, github_headers(endpoint["secret"], body), body)
    [event] = await stored(place.database)
    assert (event["run_id"], event["refusal"]) == (None, None)
    assert await emitted(place.database, "agents.run_proposed.v1") == []


async def test_a_rotated_secret_is_good_at_once_and_the_one_before_for_a_day(
    place: Place, service: RunningService, user_id: UUID
) -> None:
    endpoint = await an_endpoint(service, user_id, "gitlab")
    headers = service_headers("agents", user_id=user_id)
    path = f"/internal/webhook-endpoints/{endpoint['id']}"
    rotated = await service.client.post(f"{path}/rotate", headers=headers)
    fresh = rotated.json()["secret"]
    assert fresh != endpoint["secret"]
    for number, secret in enumerate((fresh, endpoint["secret"])):
        answer = await deliver(service, endpoint, {"X-Gitlab-Token": secret}, b'{"n": %d}' % number)
        assert answer.status_code == 202
    await place.database.execute("UPDATE agents.webhook_endpoints SET former_secret_until = now()")
    stale = await deliver(service, endpoint, {"X-Gitlab-Token": endpoint["secret"]}, b'{"n": 3}')
    assert stale.status_code == 401
    other = await service.client.delete(path, headers=service_headers("agents", user_id=new_id()))
    assert other.status_code == 404
    assert (await service.client.delete(path, headers=headers)).status_code == 204
    assert (await deliver(service, endpoint, {"X-Gitlab-Token": fresh}, b"{}")).status_code == 404


async def test_a_result_that_needs_approval_waits_for_it(
    place: Place, service: RunningService, database: Database, user_id: UUID
) -> None:
    await set_tier(database, user_id, "pro")
    run_id = await propose(place, service, user_id, approval_required=True)
    async with database.transaction() as conn:
        await consumers.on_hold_granted(HoldGranted(user_id=user_id, run_id=run_id), conn)
    await has_status(place.database, run_id, "succeeded")
    waiting = await get(service, user_id, "/internal/runs", approval="pending")
    assert [it["id"] for it in waiting["items"]] == [str(run_id)]
    decide = f"/internal/runs/{run_id}/approval"
    headers = service_headers("agents", user_id=user_id)
    for decision, status in (("approved", 200), ("approved", 200), ("rejected", 409)):
        answer = await service.client.post(decide, headers=headers, json={"decision": decision})
        assert answer.status_code == status, answer.text


async def test_a_proposed_run_runs_when_metering_grants_it(
    place: Place, service: RunningService, database: Database, user_id: UUID
) -> None:
    await set_tier(database, user_id, "pro")
    run_id = await propose(place, service, user_id)
    assert await place.database.fetchval("SELECT count(*) FROM agent_runs") == 0
    for _ in range(2):
        async with database.transaction() as conn:
            await consumers.on_hold_granted(HoldGranted(user_id=user_id, run_id=run_id), conn)
    row = await has_status(place.database, run_id, "succeeded")
    assert "Fix the invoice total" in row["task"]
    [event] = await stored(place.database)
    assert (event["run_id"], row["background_event_id"]) == (run_id, event["id"])
    assert await place.database.fetchval("SELECT count(*) FROM agents.proposals") == 0


async def test_a_proposed_run_that_metering_denies_leaves_its_reason_on_the_event(
    place: Place, service: RunningService, database: Database, user_id: UUID
) -> None:
    await set_tier(database, user_id, "pro")
    run_id = await propose(place, service, user_id)
    denied = HoldDenied(
        user_id=user_id, run_id=run_id, metric="runs", limit=50, used=50, held=0, resets_at=system_clock()
    )
    async with database.transaction() as conn:
        await consumers.on_hold_denied(denied, conn)
    [event] = await stored(place.database)
    assert event["refusal"]["code"] == "metering.quota_exceeded"
    assert event["run_id"] is None
    assert await place.database.fetchval("SELECT count(*) FROM agents.proposals") == 0


async def test_a_plan_without_suggestions_stores_the_event_and_proposes_nothing(
    place: Place, service: RunningService, user_id: UUID
) -> None:
    endpoint = await an_endpoint(service, user_id, "github", auto_suggest=True)
    await deliver_pull_request(service, endpoint)
    [event] = await stored(place.database)
    assert event["refusal"]["code"] == "agents.plan_lacks_auto_suggest"
    assert await emitted(place.database, "agents.run_proposed.v1") == []
