"""The running of one call: idempotency, one transaction, and the line in the truth log."""

import hashlib
from dataclasses import dataclass
from typing import cast

import orjson

from devkit.clock import wall_time_s
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.rendering import render
from devkit.stripe.routes import INCLUDES
from devkit.stripe.world import Call, Handler, World, inner

KEY_LIFE_S = 86_400
LOGGED_FIELDS = ("id", "object")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status and body as they go to the wire."""

    status: int
    body: bytes
    is_replay: bool = False


def fingerprint(call: Call) -> str:
    text = orjson.dumps([call.method, call.path, call.params.tree], option=orjson.OPT_SORT_KEYS)
    return hashlib.sha256(text).hexdigest()


def replay(world: World, call: Call) -> Answer | None:
    """The saved answer for the call's key, if it has one; another call under the same key is an error."""
    row = world.store.sql.execute(
        "SELECT fingerprint, status, body FROM idempotency WHERE key = ? AND created_at > ?",
        (call.idempotency_key, wall_time_s() - KEY_LIFE_S),
    ).fetchone()
    if row is None:
        return None
    if row["fingerprint"] != fingerprint(call):
        raise ApiError(
            400,
            "idempotency_error",
            "Keys for idempotent requests can only be used with the same endpoint and parameters they were first "
            f"used with. Try using a key other than '{call.idempotency_key}' if you meant a different request.",
        )
    return Answer(status=row["status"], body=row["body"], is_replay=True)


def perform(world: World, call: Call, handler: Handler) -> Answer:
    """Run a call in one transaction, together with its idempotency record and its line in the log."""
    has_key = call.method == "POST" and call.idempotency_key is not None
    with world.store.transaction():
        saved = replay(world, call) if has_key else None
        if saved is not None:
            log(world, call, saved.status, replayed=True, body=saved.body)
            return saved
        status, body, is_validation = _run(world, call, handler)
        if has_key and not is_validation:
            world.store.sql.execute(
                """
                INSERT INTO idempotency (key, fingerprint, status, body, created_at) VALUES (?, ?, ?, ?, ?)
                ON CONFLICT (key) DO UPDATE SET fingerprint = excluded.fingerprint, status = excluded.status,
                    body = excluded.body, created_at = excluded.created_at
                """,
                (call.idempotency_key, fingerprint(call), status, body, wall_time_s()),
            )
        log(world, call, status, body=body)
    world.committed()  # only now can the background see what was done
    return Answer(status=status, body=body)


def _run(world: World, call: Call, handler: Handler) -> tuple[int, bytes, bool]:
    world.cause = call
    try:
        result = world.attempt(lambda: render(world, handler(world, call), call, INCLUDES))
    finally:
        world.cause = None
    if isinstance(result, ApiError):
        return result.status, orjson.dumps(result.body()), result.is_validation
    return 200, orjson.dumps(result), False


def log(
    world: World,
    call: Call,
    status: int | None,
    *,
    body: bytes = b"{}",
    replayed: bool = False,
    fault: str | None = None,
) -> None:
    """Write down what really happened, for tests that must know; `status` is None when no answer was given."""
    answer = cast("Json", orjson.loads(body))
    problem = inner(answer, "error")
    entry: Json = {
        "request_id": call.request_id,
        "idempotency_key": call.idempotency_key,
        "params": call.params.tree,
        "status": status,
        "is_replay": replayed,
        "fault": fault,
        "error": problem.get("code") or problem.get("type"),
        **{name: answer.get(name) for name in LOGGED_FIELDS},
    }
    world.store.sql.execute(
        "INSERT INTO calls (at, method, path, body) VALUES (?, ?, ?, ?)",
        (wall_time_s(), call.method, call.path, orjson.dumps(entry).decode()),
    )


def logged(world: World, *, after: int, limit: int) -> list[Json]:
    rows = world.store.sql.execute(
        "SELECT seq, at, method, path, body FROM calls WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit)
    ).fetchall()
    return [
        {"seq": row["seq"], "at": row["at"], "method": row["method"], "path": row["path"], **orjson.loads(row["body"])}
        for row in rows
    ]
