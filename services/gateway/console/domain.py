"""Seals of cookies and forms, and what the pages show: strips of health, usage bars, a run's timeline. Pure."""

import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal
from uuid import UUID

SERVICES: Final = ("gateway", "billing", "metering", "agents")
MINUTES: Final = 60
"""How far back the charts and strips go."""

Status = Literal["ok", "warning", "failed", "away", "disabled", "unknown"]
_WORST_FIRST: Final[Sequence[Status]] = ("away", "failed", "warning", "ok", "disabled", "unknown")

# Which check speaks for which of the things the services depend on.
DEPENDENCIES: Final[Mapping[str, str]] = {
    "database": "PostgreSQL",
    "queues_with_consumer": "RabbitMQ",
    "redis": "Redis",
    "live_mirror": "Redis",
    "stripe": "Stripe",
    "models": "Models",
    "mail_oldest_unsent_s": "Mail",
}


# Sign-in ------------------------------------------------------------------------------------------------------------


def cookie_of(session_id: UUID, key: bytes) -> str:
    """What the browser keeps: the session's id under a seal of the session's own key. It is no refresh token."""
    return f"{session_id}.{_seal(key, 'cookie')}"


def read_cookie(value: str) -> tuple[UUID, str] | None:
    session_id, _, seal = value.partition(".")
    try:
        return UUID(session_id), seal
    except ValueError:
        return None


def is_cookie_seal(seal: str, key: bytes) -> bool:
    return hmac.compare_digest(seal.encode(), _seal(key, "cookie").encode())


def form_token(key: bytes) -> str:
    """What every change must bring along; another site's page cannot know it."""
    return _seal(key, "form")


def is_form_token(token: str, key: bytes) -> bool:
    return hmac.compare_digest(token.encode(), form_token(key).encode())


def _seal(key: bytes, purpose: str) -> str:
    return hmac.new(key, f"console {purpose}".encode(), hashlib.sha256).hexdigest()


def safe_path(wanted: str) -> str:
    """Where to go after signing in: a page of the console, whatever was asked."""
    is_ours = wanted.startswith("/console") and not any(c in wanted for c in "\\\r\n") and "//" not in wanted
    return wanted if is_ours else "/console"


# Health -------------------------------------------------------------------------------------------------------------


def worst(statuses: Iterable[Status]) -> Status:
    found = set(statuses)
    ranked: list[Status] = [status for status in _WORST_FIRST if status in found]
    return ranked[0] if ranked else "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceHealth:
    """What a service's readiness said, or that it did not answer."""

    name: str
    status: Status
    checks: Sequence[Mapping[str, Any]] = ()

    @property
    def troubles(self) -> Sequence[Mapping[str, Any]]:
        return [check for check in self.checks if check["status"] in {"failed", "warning"}]


def read_health(name: str, body: Mapping[str, Any]) -> ServiceHealth:
    checks: Sequence[Mapping[str, Any]] = body.get("checks") or []
    status = worst(check["status"] for check in checks if check["status"] != "disabled")
    return ServiceHealth(name=name, status=status, checks=checks)


def dependencies_of(services: Sequence[ServiceHealth]) -> dict[str, Status]:
    """Each dependency as the worst that any service says of it; one that all have switched off is disabled."""
    said: dict[str, list[Status]] = {name: [] for name in dict.fromkeys(DEPENDENCIES.values())}
    for service in services:
        for check in service.checks:
            if check["name"] in DEPENDENCIES:
                said[DEPENDENCIES[check["name"]]].append(check["status"])
    return {name: worst(statuses) for name, statuses in said.items()}


_UNITS: Final[Mapping[str, str]] = {"_ms": "ms", "_s": "s", "_percent": "%"}


def plain_name(check: str) -> str:
    """A check's name without its unit: `outbox_oldest_unsent_s` is `outbox oldest unsent`."""
    unit = next((unit for unit in _UNITS if check.endswith(unit)), "")
    return check.removesuffix(unit).replace("_", " ")


def measured(value: Any, check: str) -> str:
    """What a check saw, with the unit its name ends with; a word is told as it is."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    unit = next((text for suffix, text in _UNITS.items() if check.endswith(suffix)), "")
    return f"{value:,.1f}".removesuffix(".0") + (f" {unit}" if unit else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """One minute of a strip, as wide as every other."""

    x: int
    status: Status


def strip(
    samples: Sequence[tuple[datetime, Mapping[str, Status]]], name: str, *, now: datetime
) -> tuple[Sequence[Tick], float | None]:
    """One tick a minute, oldest first, the worst sample of each; and how many percent of the samples were up."""
    by_minute: dict[int, list[Status]] = {}
    for at, statuses in samples:
        age = int((now - at).total_seconds() // 60)
        if 0 <= age < MINUTES and name in statuses:
            by_minute.setdefault(MINUTES - 1 - age, []).append(statuses[name])
    ticks = [Tick(x=x, status=worst(by_minute.get(x, ()))) for x in range(MINUTES)]
    told = [status for statuses in by_minute.values() for status in statuses]
    up = sum(1 for status in told if status not in {"away", "failed"})
    return ticks, (100 * up / len(told) if told else None)


# People and runs ----------------------------------------------------------------------------------------------------

TIERS: Final = ("free", "pro", "pro+", "enterprise")
RUN_STATES: Final = ("queued", "running", "succeeded", "failed", "cancelled", "timed_out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Usage of one metric. `used_x` and `held_x` are widths in percent; without a limit there is nothing to fill."""

    name: str
    used: int
    held: int
    limit: int | None
    used_x: float
    held_x: float
    status: Status


NEARLY: Final = 0.8
LEAST: Final = 0.008
"""What is not nothing is shown as something."""


def bars(metrics: Mapping[str, Mapping[str, Any]]) -> list[Bar]:
    return [
        _bar(name, used=metric["used"], held=metric["held"], limit=metric["limit"]) for name, metric in metrics.items()
    ]


def _bar(name: str, *, used: int, held: int, limit: int | None) -> Bar:
    share = min(1.0, used / limit) if limit else 0.0
    held_share = min(1.0 - share, held / limit) if limit else 0.0
    status: Status = "ok" if share < NEARLY else "warning" if share < 1 else "failed"
    return Bar(
        name=name,
        used=used,
        held=held,
        limit=limit,
        used_x=round(100 * max(share, LEAST if limit and used else 0), 1),
        held_x=round(100 * held_share, 1),
        status=status,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that happened in a run. `after_s` is how long after its acceptance; deltas in a row are one step."""

    name: str
    at: datetime
    after_s: float
    count: int
    detail: str


def timeline(created_at: str, events: Sequence[Mapping[str, Any]]) -> Sequence[Step]:
    began = datetime.fromisoformat(created_at)
    steps: list[Step] = []
    for event in events:
        at = datetime.fromisoformat(event["created_at"])
        name = event["type"].removeprefix("run.")
        length = len(event["data"].get("text", ""))
        if name == "delta" and steps and steps[-1].name == "delta":
            last = steps.pop()
            length += int(last.detail.partition(" ")[0])
            steps.append(_step(name, last.at, began, count=last.count + 1, detail=_until(length, last.at, at)))
            continue
        detail = f"{length} characters" if name == "delta" else _told(event["data"])
        steps.append(_step(name, at, began, count=1, detail=detail))
    return steps


def _step(name: str, at: datetime, began: datetime, *, count: int, detail: str) -> Step:
    return Step(name=name, at=at, after_s=max(0.0, (at - began).total_seconds()), count=count, detail=detail)


def _until(length: int, first: datetime, last: datetime) -> str:
    return f"{length} characters in {(last - first).total_seconds():.1f} s"


def _told(data: Mapping[str, Any]) -> str:
    """The plain facts of an event, without its text."""
    facts = [f"{key} {value}" for key, value in data.items() if isinstance(value, int | str) and key != "text"]
    return ", ".join(facts)[:200]
