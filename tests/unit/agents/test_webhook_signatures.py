"""Signatures are checked over raw bytes; deliveries are read with suspicion."""

import hashlib
import hmac
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.agents.background.domain import (
    SignatureInvalid,
    WebhookKind,
    WebhookUnreadable,
    asks_for_suggestion,
    read_delivery,
    suggestion_task,
    summarise,
    verify,
)

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
SECRET = "s3cret"


def generic(offset_s: int, *, body: bytes = b"{}") -> dict[str, str]:
    timestamp = str(int(NOW.timestamp()) + offset_s)
    digest = hmac.new(SECRET.encode(), f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()
    return {"x-timestamp": timestamp, "x-signature-256": f"sha256={digest}"}


def is_accepted(headers: dict[str, str], *, kind: WebhookKind = WebhookKind.GENERIC, body: bytes = b"{}") -> bool:
    try:
        verify(kind, secrets=[SECRET], headers=headers, body=body, now=NOW)
    except SignatureInvalid:
        return False
    return True


@pytest.mark.parametrize(("offset_s", "accepted"), [(0, True), (-300, True), (300, True), (-301, False), (301, False)])
def test_a_generic_timestamp_may_be_five_minutes_off_either_way(offset_s: int, *, accepted: bool) -> None:
    assert is_accepted(generic(offset_s)) is accepted


def test_the_generic_signature_covers_timestamp_and_body() -> None:
    assert not is_accepted({**generic(0), "x-timestamp": str(int(NOW.timestamp()) + 1)})
    assert not is_accepted(generic(0), body=b"{} ")


def test_github_s_own_example_verifies() -> None:
    # From docs.github.com, "Validating webhook deliveries", testing the payload validation.
    headers = {"x-hub-signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
    verify(WebhookKind.GITHUB, secrets=["It's a Secret to Everybody"], headers=headers, body=b"Hello, World!", now=NOW)


@pytest.mark.parametrize("kind", list(WebhookKind))
@given(value=st.text())
def test_no_header_by_chance_opens_the_door(kind: WebhookKind, value: str) -> None:
    names = ("x-hub-signature-256", "x-gitlab-token", "x-signature-256", "x-timestamp")
    if value != SECRET:
        # Headers reach us as latin-1; whatever is in them must be refused, not raise.
        assert not is_accepted(dict.fromkeys(names, value.encode(errors="replace").decode("latin-1")), kind=kind)


def test_github_and_gitlab_name_their_deliveries_in_headers_and_others_in_the_signed_body() -> None:
    def delivery_id(kind: WebhookKind, headers: dict[str, str], content: Any) -> str:
        return read_delivery(kind, headers=headers, body=b"b", content=content).id

    assert delivery_id(WebhookKind.GITHUB, {"x-github-delivery": "g"}, {}) == "g"
    assert delivery_id(WebhookKind.GITLAB, {"idempotency-key": "l"}, {}) == "l"
    assert delivery_id(WebhookKind.GENERIC, {"x-delivery-id": "header"}, {"id": "body"}) == "body"
    unnamed = delivery_id(WebhookKind.GENERIC, {"x-timestamp": "1"}, {})
    assert unnamed != delivery_id(WebhookKind.GENERIC, {"x-timestamp": "2"}, {})
    assert len(delivery_id(WebhookKind.GENERIC, {}, {"id": "x" * 500})) == 64


def test_a_body_that_is_no_object_is_unreadable() -> None:
    with pytest.raises(WebhookUnreadable):
        read_delivery(WebhookKind.GITHUB, headers={}, body=b"[]", content=[])


def test_the_summary_keeps_little_and_on_one_line() -> None:
    payload = {
        "action": "opened",
        "pull_request": {"title": "Add\x00 a\nthing", "body": "secret"},
        "installation": {"token": "ghs_x"},
        "commits": [{"message": "m" * 999}, {"message": 5}, "x"] * 20,
    }
    summary = summarise(payload)
    assert summary.keys() == {"action", "title", "commits"}
    assert summary["title"] == "Add a thing"
    assert len(summary["commits"]) == 10
    assert all(len(title) == 300 for title in summary["commits"])


def test_the_task_quotes_the_event() -> None:
    task = suggestion_task("github", "push", {"repository": "acme/app", "commits": ["one", "two"]})
    assert task.splitlines()[1:] == ["- repository: acme/app", "- commits: one; two"]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=6,
)


@settings(max_examples=40)
@given(
    content=st.dictionaries(
        st.sampled_from(["repository", "project", "issue", "commits", "ref", "action", "id", "type", "title"]),
        json_values,
    )
)
def test_any_json_object_can_be_read(content: dict[str, Any]) -> None:
    for kind in WebhookKind:
        delivery = read_delivery(kind, headers={}, body=b"", content=content)
        assert delivery.id
        suggestion_task(kind, delivery.kind, delivery.summary).encode()


@pytest.mark.parametrize(
    ("source", "kind", "payload", "asks"),
    [
        ("github", "pull_request", {"action": "opened", "pull_request": {"title": "x"}}, True),
        ("github", "pull_request", {"action": "labeled", "pull_request": {"labels": [{"name": "Stale"}]}}, True),
        ("github", "pull_request", {"action": "synchronize", "pull_request": {"state": "open"}}, False),
        ("github", "issues", {"action": "opened", "issue": {"title": "x"}}, True),
        ("github", "issues", {"action": "closed", "issue": {"title": "x"}}, False),
        ("github", "workflow_run", {"action": "completed", "workflow_run": {"conclusion": "failure"}}, True),
        ("github", "workflow_run", {"action": "completed", "workflow_run": {"conclusion": "success"}}, False),
        ("github", "push", {"commits": [{"modified": ["db/migrations/0001_users.sql"]}]}, True),
        ("github", "push", {"commits": [{"modified": ["README.md"]}]}, False),
        ("gitlab", "Merge Request Hook", {"object_attributes": {"action": "open", "title": "x"}}, True),
        ("gitlab", "Issue Hook", {"object_attributes": {"action": "open", "title": "x"}}, True),
        ("gitlab", "Pipeline Hook", {"object_attributes": {"status": "failed"}}, True),
        ("gitlab", "Pipeline Hook", {"object_attributes": {"status": "success"}}, False),
        ("generic", "build.failed", {}, True),
        ("generic", "schema.changed", {}, True),
        ("generic", "lunch.ready", {}, False),
    ],
)
def test_only_what_founders_would_want_to_know_asks_for_a_suggestion(
    source: str, kind: str, payload: dict[str, Any], *, asks: bool
) -> None:
    assert asks_for_suggestion(source, kind, summarise(payload)) is asks
