"""How usage over time is cut and its gaps are filled. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from libs.common.errors import Invalid
from libs.common.plans import Plans

Grain = Literal["hour", "day", "month"]
MAX_BUCKETS: Final = 1_000
_DEFAULT_SPAN: Final[Mapping[Grain, timedelta]] = {
    "hour": timedelta(hours=24),
    "day": timedelta(days=30),
    "month": timedelta(days=365),
}


class BadHistory(Invalid):
    code = "metering.bad_history"


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """What one series used in one bucket. `peak` and `last` are what meters that do not add up show."""

    start: datetime
    metric: str
    group: str | None
    amount: int
    peak: int | None
    last: int | None
    cost_micro_usd: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    start: datetime
    used: int
    cost_micro_usd: int


def floor(at: datetime, grain: Grain) -> datetime:
    here = at.astimezone(UTC).replace(minute=0, second=0, microsecond=0)
    if grain == "hour":
        return here
    return here.replace(hour=0) if grain == "day" else here.replace(hour=0, day=1)


def _next(start: datetime, grain: Grain) -> datetime:
    if grain == "hour":
        return start + timedelta(hours=1)
    if grain == "day":
        return start + timedelta(days=1)
    return floor(start + timedelta(days=31), "month")


def buckets(grain: Grain, *, since: datetime | None, until: datetime | None, now: datetime) -> Sequence[datetime]:
    """The starts of all buckets from the one `since` falls in to the one before `until`. Raises BadHistory."""
    end = until or now + timedelta(microseconds=1)
    start = floor(since or end - _DEFAULT_SPAN[grain], grain)
    starts: list[datetime] = []
    while start < end:
        if len(starts) == MAX_BUCKETS:
            raise BadHistory(f"At most {MAX_BUCKETS} steps at once: ask for a shorter time or longer steps.")
        starts.append(start)
        start = _next(start, grain)
    if not starts:
        raise BadHistory("The end must come after the start.")
    return starts


def check_group(plans: Plans, metrics: Sequence[str], group_by: str | None) -> None:
    """Raises BadHistory for a property that the catalogue does not let these metrics be split by."""
    allowed = {prop for metric in metrics for prop in plans.meters[metric].group_by}
    if group_by is not None and group_by not in allowed:
        raise BadHistory(f"{group_by} is nothing this can be split by.", allowed=sorted(allowed))


def series(
    plans: Plans, metrics: Sequence[str], starts: Sequence[datetime], slices: Iterable[Slice]
) -> dict[tuple[str, str | None], list[Point]]:
    """One point per bucket for every series, zero where nothing was used; a metric nobody used has one empty series."""
    found: dict[tuple[str, str | None], dict[datetime, Slice]] = {}
    for one in slices:
        found.setdefault((one.metric, one.group), {})[one.start] = one
    for metric in metrics:
        if not any(name == metric for name, _ in found):
            found[metric, None] = {}
    return {
        key: [_point(plans.meters[key[0]].aggregation, start, used.get(start)) for start in starts]
        for key, used in sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or ""))
    }


def _point(aggregation: str, start: datetime, one: Slice | None) -> Point:
    if one is None:
        return Point(start=start, used=0, cost_micro_usd=0)
    used = {"max": one.peak, "latest": one.last}.get(aggregation, one.amount)
    return Point(start=start, used=used or 0, cost_micro_usd=one.cost_micro_usd)
