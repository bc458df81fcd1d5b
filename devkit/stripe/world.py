"""What every call works on: the store, the clocks, the identifiers and the events that changes give rise to."""

import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import orjson

from devkit.clock import wall_time_s
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.forms import Params
from devkit.stripe.store import Store

API_VERSION = "2026-10-28.endive"
DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the emulator behaves; times are seconds."""

    public_url: str
    finalize_after_s: int = 3_600
    retry_days: tuple[int, ...] = (3, 5, 7)
    after_final_failure: str = "canceled"
    delivery_base_s: float = 1.0
    delivery_cap_s: float = 60.0
    delivery_timeout_s: float = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeds:
    """What is there from the start, and again after a reset."""

    webhook_url: str | None = None
    webhook_secret: str | None = None
    plans: Path | None = None


@dataclass(slots=True, kw_only=True)
class Call:
    """One request to the API, parsed."""

    method: str
    path: str
    params: Params
    ids: list[str] = field(default_factory=list[str])
    request_id: str | None = None
    idempotency_key: str | None = None


Handler = Callable[["World", Call], Json]
Route = tuple[str, str, Handler]


class World:
    """The state of the emulated account. Synchronous: a call runs to its end inside one transaction."""

    def __init__(self, store: Store, settings: Settings, seeds: Seeds) -> None:
        self.store = store
        self.settings = settings
        self.seeds = seeds
        self.cause: Call | None = None
        self.on_commit: list[Callable[[], None]] = []
        self.spent: list[int] = []
        self._at: tuple[str, int] | None = None

    def new_id(self, prefix: str) -> str:
        return f"{prefix}_{secrets.token_hex(12)}"

    def attempt(self, work: Callable[[], Json]) -> Json | ApiError:
        """Do one thing in one transaction and give its result, or the error that ended it.

        An error undoes the work unless it keeps its effects. Planned outcomes stay used up either way: a declined
        card was asked, whatever became of the call.
        """
        self.spent.clear()
        with self.store.transaction():
            self.store.sql.execute("SAVEPOINT work")
            try:
                result: Json | ApiError = work()
            except ApiError as error:
                result = error
            if isinstance(result, ApiError) and not result.keeps_effects:
                self.store.sql.execute("ROLLBACK TO work")
                self.store.sql.executemany("DELETE FROM outcomes WHERE id = ?", [(number,) for number in self.spent])
            self.store.sql.execute("RELEASE work")
        self.committed()
        return result

    # Time

    def now(self, clock: str | None = None) -> int:
        """Unix seconds on a test clock, or on the global clock when none is named."""
        name = clock or ""
        if self._at is not None and self._at[0] == name:
            return self._at[1]
        if clock:
            return cast("int", self.need("test_helpers.test_clock", clock)["frozen_time"])
        return int(wall_time_s() + self.offset_s())

    def offset_s(self) -> float:
        """How far the global clock stands ahead of the wall clock."""
        return float(self.store.document("clock_offset_s", 0))

    @contextmanager
    def standing_at(self, clock: str, moment: int) -> Generator[None]:
        """Work done inside happens at `moment` on that clock, whatever the clock shows now."""
        before, self._at = self._at, (clock, moment)
        try:
            yield
        finally:
            self._at = before

    # Objects

    def need(self, kind: str, object_id: str, *, param: str | None = None, noun: str | None = None) -> Json:
        """The living object, or the API's "No such ..." (404 for a path, 400 when `param` named it)."""
        found = self.store.find(object_id, kind)
        if found is None or found.get("deleted"):
            word = noun or kind.rpartition(".")[2]
            raise ApiError.not_found(word, object_id, param=param or word, status=400 if param else 404)
        return found

    def add(self, body: Json, event: str | None = None, *, due_at: int | None = None) -> Json:
        """Store a new object and announce it."""
        self.store.put(body, due_at=due_at)
        if event is not None:
            self.emit(event, body)
        return body

    def change(self, before: Json, after: Json, event: str | None = None, *, due_at: int | None = None) -> Json:
        """Store the changed object and announce it with what it was before; no change, no event."""
        self.store.put(after, due_at=due_at)
        previous = difference(visible(before), visible(after))
        if event is not None and previous:
            shows_change = event.endswith(".updated") or event == "charge.refunded"
            self.emit(event, after, previous if shows_change else None)
        return after

    def emit(self, event_type: str, body: Json, previous: Json | None = None) -> Json:
        """Record an event and one pending delivery for each endpoint that wants it, in the same transaction."""
        data: Json = {"object": visible(body)}
        if previous is not None:
            data["previous_attributes"] = previous
        targets = [
            endpoint["id"]
            for endpoint in self.store.oldest_first("webhook_endpoint")
            if endpoint["status"] == "enabled" and wants(endpoint["enabled_events"], event_type)
        ]
        event: Json = {
            "id": self.new_id("evt"),
            "object": "event",
            "api_version": API_VERSION,
            "created": self.now(),
            "data": data,
            "livemode": False,
            "pending_webhooks": len(targets),
            "request": {
                "id": self.cause.request_id if self.cause else None,
                "idempotency_key": self.cause.idempotency_key if self.cause else None,
            },
            "type": event_type,
        }
        self.store.put(event)
        for target in targets:
            self.enqueue(event["id"], target)
        return event

    def enqueue(self, event_id: str, endpoint_id: str) -> None:
        self.store.sql.execute(
            "INSERT INTO deliveries (event, endpoint, next_at) VALUES (?, ?, ?)",
            (event_id, endpoint_id, wall_time_s()),
        )

    def committed(self) -> None:
        """Wake what works in the background; called after a transaction that may have left it something."""
        for wake in self.on_commit:
            wake()


def wants(enabled: list[str], event_type: str) -> bool:
    return "*" in enabled or event_type in enabled


def visible(body: Json) -> Json:
    """A deep copy without the emulator's own fields."""
    return cast("Json", _stripped(orjson.loads(orjson.dumps(body))))


def _stripped(value: Any) -> Any:
    if isinstance(value, dict):
        tree = cast("Json", value)
        return {key: _stripped(item) for key, item in tree.items() if not key.startswith("_")}
    if isinstance(value, list):
        return [_stripped(item) for item in cast("list[Any]", value)]
    return value


def copied(body: Json) -> Json:
    """A deep copy with everything in it, to be changed and compared with the original."""
    return cast("Json", orjson.loads(orjson.dumps(body)))


def inner(body: Json, name: str) -> Json:
    """The object under a field; an empty one when the field is absent or null."""
    return cast("Json", body.get(name) or {})


def difference(before: Json, after: Json) -> Json:
    """The old values of what changed: nested objects give only their changed fields, lists are given whole."""
    changed: Json = {}
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            changed[key] = difference(cast("Json", old), cast("Json", new))
        else:
            changed[key] = old
    return changed
