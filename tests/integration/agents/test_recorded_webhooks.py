"""What GitHub really sent, and what GitLab documents, signed by libraries that are not ours."""

import time
from collections import Counter
from collections.abc import AsyncGenerator
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest

from libs.common.database import Database
from tests.harness.javascript import run_client_beside
from tests.harness.services import Place, RunningService, service_headers
from tests.integration.agents.workshop import FakeModel, agents, set_tier

ASKING = {"pull_request", "issues", "check_run", "check_suite", "workflow_run", "status", "push"}

# The fields and values of docs.gitlab.com, "Webhook events", of each kind that may ask for a suggestion, and one more.
GITLAB: dict[str, dict[str, Any]] = {
    "Merge Request Hook": {
        "object_kind": "merge_request",
        "event_type": "merge_request",
        "user": {"id": 1, "name": "Administrator", "username": "root", "email": "[REDACTED]"},
        "project": {"id": 1, "name": "Gitlab Test", "path_with_namespace": "gitlabhq/gitlab-test"},
        "object_attributes": {
            "id": 99,
            "iid": 1,
            "target_branch": "master",
            "source_branch": "ms-viewport",
            "title": "MS-Viewport",
            "state": "opened",
            "action": "open",
            "draft": False,
        },
        "labels": [{"id": 206, "title": "API", "color": "#ffffff", "type": "ProjectLabel"}],
    },
    "Issue Hook": {
        "object_kind": "issue",
        "project": {"id": 1, "path_with_namespace": "gitlabhq/gitlab-test"},
        "object_attributes": {"id": 301, "iid": 23, "title": "New API", "state": "opened", "action": "open"},
        "labels": [],
    },
    "Pipeline Hook": {
        "object_kind": "pipeline",
        "object_attributes": {"id": 31, "iid": 3, "ref": "master", "status": "failed", "stages": ["build", "test"]},
        "project": {"id": 1, "path_with_namespace": "gitlab-org/gitlab-test"},
        "builds": [{"id": 380, "stage": "deploy", "name": "production", "status": "skipped"}],
    },
    "Job Hook": {
        "object_kind": "build",
        "ref": "gitlab-script-trigger",
        "build_id": 1977,
        "build_name": "test",
        "build_stage": "test",
        "build_status": "failed",
        "project": {"id": 380, "path_with_namespace": "gitlab-org/gitlab-test"},
    },
    "Push Hook": {
        "object_kind": "push",
        "ref": "refs/heads/master",
        "project": {"id": 15, "path_with_namespace": "mike/diaspora"},
        "commits": [
            {"id": "b6568db", "message": "Add users.\n\nSee the wiki.", "added": ["db/schema.rb"], "modified": []}
        ],
        "total_commits_count": 1,
    },
    "Note Hook": {
        "object_kind": "note",
        "project": {"id": 5, "path_with_namespace": "gitlabhq/gitlab-test"},
        "object_attributes": {"id": 1243, "note": "This is a commit comment.", "noteable_type": "Commit"},
    },
}


@pytest.fixture
async def service(place: Place) -> AsyncGenerator[RunningService, None]:
    async with agents(place, FakeModel()) as running:
        yield running


async def an_endpoint(service: RunningService, user_id: UUID, kind: str) -> dict[str, Any]:
    answer = await service.client.post(
        "/internal/webhook-endpoints",
        json={"kind": kind, "name": "ours", "auto_suggest": True},
        headers=service_headers("agents", user_id=user_id),
    )
    return answer.json()


async def deliver(
    service: RunningService, endpoint: dict[str, Any], headers: dict[str, str], body: str
) -> httpx.Response:
    return await service.client.post(
        f"/internal/webhooks/{endpoint['kind']}/{endpoint['id']}",
        content=body.encode(),
        headers={**service_headers("agents"), "Content-Type": "application/json", **headers},
    )


async def test_recorded_deliveries_are_accepted_once_with_their_signature_and_never_with_another(
    place: Place, service: RunningService, database: Database, user_id: UUID
) -> None:
    await set_tier(database, user_id, "pro")
    github, gitlab = await an_endpoint(service, user_id, "github"), await an_endpoint(service, user_id, "gitlab")
    now = int(time.time())
    asked = {
        "github": github["secret"],
        "gitlab": {
            "secret": gitlab["secret"],
            "timestamp": now,
            "bodies": [orjson.dumps(it).decode() for it in GITLAB.values()],
        },
    }
    signed = orjson.loads(await run_client_beside("forges", "sign.mjs", stdin=orjson.dumps(asked).decode()))
    answers: Counter[int] = Counter()
    for number, it in enumerate(signed["github"]):
        headers = {"X-GitHub-Event": it["event"], "X-GitHub-Delivery": f"g-{number}"}
        for signature in (signed["github"][number - 1]["signature"], it["signature"], it["signature"]):
            answer = await deliver(service, github, {**headers, "X-Hub-Signature-256": signature}, it["body"])
            answers[answer.status_code] += 1
    for event, it in zip(GITLAB, signed["gitlab"], strict=True):
        headers = {"X-Gitlab-Event": event, "webhook-id": it["id"], "webhook-timestamp": str(now)}
        for signature, extra in (
            (it["signature"], {"webhook-id": "another"}),
            (it["signature"], {"webhook-timestamp": str(now - 1)}),
            ("v1,AAAA", {"X-Gitlab-Token": gitlab["secret"]}),  # a signature is asked for once it is sent
            (f"v1,AAAA {it['signature']}", {}),
            (it["signature"], {}),
        ):
            answer = await deliver(service, gitlab, {**headers, "webhook-signature": signature, **extra}, it["body"])
            answers[answer.status_code] += 1
    total = len(signed["github"]) + len(GITLAB)
    assert total > 80
    assert answers == {202: total, 200: total, 401: len(signed["github"]) + 3 * len(GITLAB)}
    suggested = await place.database.fetch(
        """
        SELECT e.source, e.kind, count(*) AS times FROM background_events e
        JOIN agents.proposals p ON p.background_event_id = e.id GROUP BY 1, 2
        """
    )
    by_kind = {(row["source"], row["kind"]): row["times"] for row in suggested}
    assert {kind for source, kind in by_kind if source == "gitlab"} == GITLAB.keys() - {"Note Hook"}
    assert {("github", "pull_request"), ("github", "issues")} <= by_kind.keys()
    assert {kind for source, kind in by_kind if source == "github"} <= ASKING
