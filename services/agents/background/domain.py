"""Webhooks: is this really from them, which delivery is it, what does it say, and what should an agent be asked.

Signature schemes, checked over the raw bytes and before anything is parsed:

| kind | header | scheme |
|---|---|---|
| github | `X-Hub-Signature-256: sha256=<hex>` | HMAC-SHA256 of the body |
| gitlab, signing token | `webhook-signature: v1,<base64>` with `webhook-id`, `webhook-timestamp` | Standard Webhooks: \
HMAC-SHA256 of `{id}.{timestamp}.{body}`, the key being the secret's base64 behind `whsec_` |
| gitlab, secret token | `X-Gitlab-Token: <secret>` | the secret itself, compared in constant time |
| generic | `X-Timestamp: <unix seconds>`, `X-Signature-256: sha256=<hex>` | HMAC-SHA256 of `{timestamp}.{body}` |

A timestamp may be 300 s off, either way. GitHub's and GitLab's are as docs.github.com and docs.gitlab.com have them; a
GitLab that sends a signature is held to it, whatever token it sends beside.
"""

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, assert_never, cast

from libs.common.errors import BadRequest, NotFound, Unauthenticated

TOLERANCE: Final = timedelta(seconds=300)
SECRET_PREFIX: Final = "vcwh_"  # noqa: S105 - what secrets begin with, none itself
SIGNING_PREFIX: Final = "whsec_"
PROPOSED_OUTPUT_TOKENS: Final = 1_024
BACKGROUND_PRIORITY: Final = -10
"""Below what somebody waits for."""
SECRET_OVERLAP: Final = timedelta(days=1)
MAX_TEXT: Final = 300
MAX_ITEMS: Final = 10
_HEX_SHA256: Final = re.compile(r"sha256=([0-9a-f]{64})")
_UNIX_SECONDS: Final = re.compile(r"[0-9]{1,11}")
_ID: Final = re.compile(r"[\x21-\x7e]{1,200}")


class WebhookKind(StrEnum):
    GITHUB = "github"
    GITLAB = "gitlab"
    GENERIC = "generic"


class EndpointNotFound(NotFound):
    code = "agents.webhook_endpoint_not_found"

    def __init__(self) -> None:
        super().__init__("There is no such webhook endpoint.")


class SignatureInvalid(Unauthenticated):
    code = "agents.webhook_signature_invalid"

    def __init__(self) -> None:
        super().__init__("The signature does not fit the body and the endpoint's secret.")


class WebhookUnreadable(BadRequest):
    code = "agents.webhook_unreadable"


def verify(
    kind: WebhookKind, *, secrets: Sequence[str], headers: Mapping[str, str], body: bytes, now: datetime
) -> None:
    """Raises SignatureInvalid unless the sender has one of the secrets. `headers` have lower-case names."""
    if not any(_is_from(kind, secret=secret, headers=headers, body=body, now=now) for secret in secrets):
        raise SignatureInvalid


def _is_from(kind: WebhookKind, *, secret: str, headers: Mapping[str, str], body: bytes, now: datetime) -> bool:
    match kind:
        case WebhookKind.GITHUB:
            return _is_signed(headers.get("x-hub-signature-256", ""), secret=secret, signed=body)
        case WebhookKind.GITLAB:
            if "webhook-signature" in headers:
                return _is_signed_by_standard(secret=secret, headers=headers, body=body, now=now)
            return hmac.compare_digest(headers.get("x-gitlab-token", "").encode(), secret.encode())
        case WebhookKind.GENERIC:
            timestamp = headers.get("x-timestamp", "")
            return _is_recent(timestamp, now=now) and _is_signed(
                headers.get("x-signature-256", ""), secret=secret, signed=timestamp.encode() + b"." + body
            )
        case _:
            assert_never(kind)


def _is_signed(signature: str, *, secret: str, signed: bytes) -> bool:
    found = _HEX_SHA256.fullmatch(signature)
    expected = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return found is not None and hmac.compare_digest(found[1], expected)


def _is_signed_by_standard(*, secret: str, headers: Mapping[str, str], body: bytes, now: datetime) -> bool:
    """Several signatures, apart by spaces, are a sender's way to rotate: one that fits is enough."""
    timestamp = headers.get("webhook-timestamp", "")
    if not _is_recent(timestamp, now=now):
        return False
    signed = f"{headers.get('webhook-id', '')}.{timestamp}.".encode() + body
    digest = hmac.new(_signing_key(secret), signed, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    return any(hmac.compare_digest(it.encode(), expected) for it in headers["webhook-signature"].split(" "))


def _signing_key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SIGNING_PREFIX))


def new_secret(kind: WebhookKind, random: bytes) -> str:
    """In the form its sender takes: GitLab's signing tokens are 32 bytes, and its secret tokens anything."""
    if kind is WebhookKind.GITLAB:
        return SIGNING_PREFIX + base64.b64encode(random).decode()
    return SECRET_PREFIX + base64.urlsafe_b64encode(random).rstrip(b"=").decode()


def _is_recent(timestamp: str, *, now: datetime) -> bool:
    if not _UNIX_SECONDS.fullmatch(timestamp):
        return False
    return abs(now.timestamp() - int(timestamp)) <= TOLERANCE.total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One delivery, read. `id` is the same when the sender sends the same one again; `summary` is all that is kept."""

    id: str
    kind: str
    summary: Mapping[str, Any]


def read_delivery(kind: WebhookKind, *, headers: Mapping[str, str], body: bytes, content: Any) -> Delivery:
    """Read a verified delivery; `content` is the parsed body. Raises WebhookUnreadable if it is no JSON object."""
    if not isinstance(content, dict):
        raise WebhookUnreadable("The body must be a JSON object; set the webhook's content type to application/json.")
    payload = cast("Mapping[str, Any]", content)
    digest = hashlib.sha256(headers.get("x-timestamp", "").encode() + b"." + body).hexdigest()
    match kind:
        case WebhookKind.GITHUB:
            name, own_id = headers.get("x-github-event", ""), headers.get("x-github-delivery")
        case WebhookKind.GITLAB:
            # Not X-Gitlab-Event-UUID: events that trigger one another share it.
            # The signed name first; both are the same, and the same again when GitLab sends the delivery again.
            name = headers.get("x-gitlab-event", "")
            own_id = headers.get("webhook-id") or headers.get("idempotency-key")
        case WebhookKind.GENERIC:
            # Inside the body, because the body is signed.
            name, own_id = str(payload.get("type") or ""), payload.get("id")
        case _:
            assert_never(kind)
    is_usable = isinstance(own_id, str) and _ID.fullmatch(own_id) is not None
    return Delivery(
        id=str(own_id) if is_usable else digest, kind=_clean(name)[:100] or "event", summary=summarise(payload)
    )


_SUBJECTS: Final = (
    "pull_request",
    "issue",
    "release",
    "object_attributes",
    "workflow_run",
    "check_run",
    "check_suite",
)
_SCHEMA_FILE: Final = re.compile(r"(^|/)(migrations?|schema)(/|\.)|\.(sql|prisma|graphql|proto)$", re.IGNORECASE)


def summarise(payload: Mapping[str, Any]) -> dict[str, Any]:
    """What a suggestion needs to know, and no more: people put surprising things into webhooks."""
    repository = _member(payload, "repository") or _member(payload, "project")
    subject = next(
        (found for key in _SUBJECTS if (found := _member(payload, key))),
        payload,
    )
    commits = payload.get("commits")
    summary = {
        "repository": _text(repository.get("full_name") or repository.get("path_with_namespace")),
        "action": _text(payload.get("action") or subject.get("action")),
        "ref": _text(payload.get("ref")),
        "title": _text(subject.get("title") or subject.get("name")),
        "message": _text(payload.get("message") or subject.get("description")),
        "commits": _commit_titles(cast("Sequence[Any]", commits)) if isinstance(commits, list) else [],
        "state": _text(
            subject.get("conclusion") or subject.get("status") or payload.get("state") or payload.get("build_status")
        ),
        "labels": _labels(payload, subject),
        "touches": ["schema"] if isinstance(commits, list) and _touches_schema(cast("Sequence[Any]", commits)) else [],
    }
    return {key: value for key, value in summary.items() if value}


_SUGGESTED: Final[Mapping[str, frozenset[str]]] = {
    # topic: the actions or states of it that are worth a suggestion
    "pull_request": frozenset({"opened", "reopened", "ready_for_review", "stale"}),
    "merge_request": frozenset({"open", "reopen", "stale"}),
    "issues": frozenset({"opened"}),
    "issue": frozenset({"open", "opened", "created"}),
    "build": frozenset({"failure", "failed", "timed_out", "error"}),
    "schema": frozenset({"changed"}),
}
_TOPICS: Final[Mapping[str, str]] = {
    "workflow_run": "build",
    "check_run": "build",
    "check_suite": "build",
    "status": "build",
    "pipeline": "build",
    "job": "build",
}


def asks_for_suggestion(source: str, kind: str, summary: Mapping[str, Any]) -> bool:
    """A pull request opened or gone stale, a build that failed, an issue created, a schema changed; nothing else.

    A generic sender says it in its type (`build.failed`); labels named stale mark the others' pull requests.
    """
    name = kind.lower().removesuffix(" hook").replace(" ", "_")
    if source == WebhookKind.GENERIC:
        name, _, action = name.replace("/", ".").partition(".")
        return action in _SUGGESTED.get(name, ()) or (name == "push" and "schema" in summary.get("touches", ()))
    topic = _TOPICS.get(name, name)
    states = {str(summary.get(key, "")).lower() for key in ("action", "state")}
    if "stale" in summary.get("labels", ()):
        states.add("stale")
    if topic == "push":
        return "schema" in summary.get("touches", ())
    return bool(_SUGGESTED.get(topic, frozenset()) & states)


def suggestion_task(source: str, kind: str, summary: Mapping[str, Any]) -> str:
    """What the agent is asked. The event's words are quoted as data; the prompt says that they command nothing."""
    lines = [f"A {source} event of kind '{kind}' arrived. Suggest what the founders should do about it, if anything."]
    for key, value in summary.items():
        text = "; ".join(map(str, cast("Sequence[Any]", value))) if isinstance(value, list) else str(value)
        lines.append(f"- {key}: {text}")
    return "\n".join(lines)


def _member(payload: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = payload.get(key)
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: Any) -> str:
    return _clean(value)[:MAX_TEXT] if isinstance(value, str) else ""


def _clean(text: str) -> str:
    """One line that PostgreSQL can hold: no control characters, no halves of surrogate pairs."""
    return re.sub(r"[\x00-\x20\x7f]+", " ", text).encode(errors="replace").decode().strip()


def _commit_titles(commits: Sequence[Any]) -> list[str]:
    messages = [cast("Mapping[str, Any]", commit).get("message") for commit in commits if isinstance(commit, dict)]
    titles = [_text(message.splitlines()[0]) for message in messages if isinstance(message, str) and message.strip()]
    return [title for title in titles if title][:MAX_ITEMS]


def _labels(payload: Mapping[str, Any], subject: Mapping[str, Any]) -> list[str]:
    found = subject.get("labels") or payload.get("labels")
    named: Sequence[Any] = cast("Sequence[Any]", found) if isinstance(found, list) else ()
    texts = [_text(_name(label)) for label in [*named, payload.get("label")] if isinstance(label, dict)]
    return [text.lower() for text in texts if text][:MAX_ITEMS]


def _name(label: Any) -> Any:
    parts = cast("Mapping[str, Any]", label)
    return parts.get("name") or parts.get("title")


def _touches_schema(commits: Sequence[Any]) -> bool:
    """Whether a push adds, changes or removes a file that says how data is stored or exchanged."""
    for commit in commits:
        if not isinstance(commit, dict):
            continue
        for key in ("added", "modified", "removed"):
            paths = cast("Mapping[str, Any]", commit).get(key)
            names: Sequence[Any] = cast("Sequence[Any]", paths) if isinstance(paths, list) else ()
            if any(isinstance(path, str) and _SCHEMA_FILE.search(path) for path in names):
                return True
    return False
