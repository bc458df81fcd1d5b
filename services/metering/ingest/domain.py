"""What an event must be, which meters it feeds, and what it does to each of them. Pure.

An event is refused alone: the others of its batch are counted. Values are whole numbers from 0 on; where money or
fractions are meant, the sender counts in a smaller unit.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Self, cast
from uuid import UUID

import orjson

from libs.common.errors import Forbidden, Invalid
from libs.common.plans import Ingest, Meter, Plans
from services.metering.domain import MAX_AMOUNT, Period
from services.metering.ledger.domain import digest, event_key

MAX_BATCH: Final = 1_000
MAX_NAME: Final = 200
MAX_PROPERTIES_BYTES: Final = 4_096
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_NAMED: Final = frozenset({"user_id", "metric", "value", "cost_micro_usd"})


class NotAnEvent(Invalid):
    code = "metering.not_an_event"


class MayNotReport(Forbidden):
    """Usage is reported by programs: with an API key for its owner, or with the service role for anybody."""

    code = "metering.may_not_report"


class Refused(Exception):
    """This event is not counted; the reason is for its sender."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporter:
    """Who reports: the owner of an API key for themself alone, or the service role (None) for anybody."""

    user_id: UUID | None

    def name(self, source: str) -> str:
        """The source as the ledger knows it: nobody can take or block the names of another's events."""
        return f"service:{source}" if self.user_id is None else f"user:{self.user_id}:{source}"


class UsageEvent(NamedTuple):
    """A tuple, because twenty thousand of them a second are made and a frozen dataclass costs four times as much.

    `at` is None if the sender did not say when; it is now, then.
    """

    key: bytes
    digest: bytes
    source: str
    event_id: str
    user_id: str
    metric: str
    at: datetime | None
    cost_micro_usd: int
    properties: str
    """JSON: what is written down of the event beside its own columns."""
    readings: Sequence["Reading"]


class Reading(NamedTuple):
    """What one meter reads off one event; `seen` is the value's name for a meter of different values."""

    meter: str
    aggregation: str
    value: int
    seen: bytes | None = None

    @property
    def adds_up(self) -> bool:
        """Whether its effect is its value, whatever was counted before."""
        return self.aggregation in {"sum", "count"}


@dataclass(slots=True, kw_only=True)
class Gauge:
    """The state of a meter that does not add up, for one user and period, while events are applied."""

    value: int = 0
    latest: tuple[datetime, str] | None = None


class Catalogue:
    """Which meters a metric feeds, looked up once for many events."""

    def __init__(self, plans: Plans) -> None:
        self._feeds: dict[str, list[tuple[str, Meter]]] = {}
        for name, meter in plans.meters.items():
            self._feeds.setdefault(meter.event or name, []).append((name, meter))

    def readings(self, metric: str, data: Mapping[str, Any]) -> list[Reading]:
        """Raises Refused for a metric nobody counts, or a value that is none."""
        feeds = self._feeds.get(metric)
        if feeds is None:
            raise Refused("unknown_metric")
        readings: list[Reading] = []
        for name, meter in feeds:
            if meter.filter and not all(data.get(key) in allowed for key, allowed in meter.filter.items()):
                continue
            reading = _read_meter(name, meter, data)
            if reading is not None:
                readings.append(reading)
        return readings


def _read_meter(name: str, meter: Meter, data: Mapping[str, Any]) -> Reading | None:
    if meter.aggregation == "count":
        return Reading(name, "count", 1)
    value = data.get(meter.reads)
    if meter.aggregation == "unique":
        return None if value is None else Reading(name, "unique", 1, digest({"value": value}))
    if type(value) is not int or not 0 <= value <= MAX_AMOUNT:
        raise Refused("value_must_be_a_whole_number")
    return Reading(name, meter.aggregation, value)


def read_event(raw: Any, reporter: Reporter, catalogue: Catalogue) -> UsageEvent:
    """Raises Refused."""
    if not isinstance(raw, dict):
        raise Refused("not_an_object")
    event = cast("dict[str, Any]", raw)
    if event.get("specversion") != "1.0":
        raise Refused("specversion_must_be_1.0")
    event_id, source, data = event.get("id"), event.get("source"), event.get("data")
    if not isinstance(event_id, str) or not 0 < len(event_id) <= MAX_NAME:
        raise Refused("id_missing_or_too_long")
    if not isinstance(source, str) or not 0 < len(source) <= MAX_NAME:
        raise Refused("source_missing_or_too_long")
    if not isinstance(event.get("type"), str):
        raise Refused("type_missing")
    if not isinstance(data, dict):
        raise Refused("data_must_be_an_object")
    facts = cast("dict[str, Any]", data)
    metric = facts.get("metric")
    if not isinstance(metric, str):
        raise Refused("metric_missing")
    properties = orjson.dumps({name: facts[name] for name in facts if name not in _NAMED})
    if len(properties) > MAX_PROPERTIES_BYTES:
        raise Refused("properties_too_long")
    name = reporter.name(source)
    return UsageEvent(
        event_key(name, event_id),
        digest({"data": facts, "time": event.get("time")}),
        name,
        event_id,
        _user_of(facts.get("user_id"), reporter),
        metric,
        _time_of(event.get("time")),
        _cost_of(facts.get("cost_micro_usd", 0)),
        properties.decode(),
        catalogue.readings(metric, facts),
    )


def _user_of(value: Any, reporter: Reporter) -> str:
    if value is None and reporter.user_id is not None:
        return str(reporter.user_id)
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise Refused("user_id_must_be_a_uuid")
    user_id = value.lower()
    if reporter.user_id is not None and user_id != str(reporter.user_id):
        raise Refused("not_your_user")
    return user_id


def _time_of(value: Any) -> datetime | None:
    if value is None:
        return None
    try:
        at = datetime.fromisoformat(value)
    except (ValueError, TypeError) as error:
        raise Refused("time_must_be_rfc_3339") from error
    if at.tzinfo is None:
        raise Refused("time_needs_an_offset")
    return at


def _cost_of(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MAX_AMOUNT:
        raise Refused("cost_must_be_a_whole_number")
    return value


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """When an event may have happened to be counted: not so long ago that its period may be closed, nor ahead of us."""

    earliest: datetime
    latest: datetime

    @classmethod
    def around(cls, now: datetime, limits: Ingest) -> Self:
        return cls(
            earliest=now - timedelta(days=limits.max_age_days), latest=now + timedelta(seconds=limits.max_ahead_s)
        )

    def refusal(self, at: datetime) -> str | None:
        if at > self.latest:
            return "in_the_future"
        return "too_old" if at < self.earliest else None


def month_of(at: datetime) -> Period:
    """The calendar month in UTC, as `metering.period_at` has it without an anchor."""
    here = at.astimezone(UTC)
    start = datetime(here.year, here.month, 1, tzinfo=UTC)
    return Period(start=start, end=datetime(here.year + here.month // 12, here.month % 12 + 1, 1, tzinfo=UTC))


def effect(gauge: Gauge, reading: Reading, *, at: datetime, event_id: str, is_new_value: bool) -> int:
    """What an event does to its counter; the gauge is moved on. The sum of all effects is the aggregate.

    In whatever order events come, a maximum is the largest, and a latest value that of the latest time (of equal times,
    of the greater id).
    """
    match reading.aggregation:
        case "unique":
            change = 1 if is_new_value else 0
        case "max":
            change = max(0, reading.value - gauge.value)
        case "latest":
            change = 0
            if gauge.latest is None or (at, event_id) > gauge.latest:
                gauge.latest = (at, event_id)
                change = reading.value - gauge.value
        case _:
            return reading.value
    gauge.value += change
    return change
