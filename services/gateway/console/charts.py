"""Lines over the last hour against the runbook's thresholds, as points to be drawn. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from services.gateway.console.domain import MINUTES, Status

BUCKETS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2000, 5000, 30_000)
"""Upper ends of the steps in which answers are timed, those of the histogram of requests."""
FEWEST: Final = 20
"""Below so many requests a share says more about chance than about the service."""
RECENT: Final = 5
"""Minutes that decide whether a threshold of the runbook is passed now."""

MAX_ERRORS_PERCENT: Final = 5.0
MAX_P95_MS: Final = 2000.0
MAX_AUTH_FAILURES_PERCENT: Final = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """What was answered in some time. `buckets` counts answers by step of BUCKETS_MS, and slower ones last."""

    requests: int = 0
    errors: int = 0
    attempts: int = 0
    failures: int = 0
    buckets: Sequence[int] = ()

    @property
    def errors_percent(self) -> float | None:
        return 100 * self.errors / self.requests if self.requests else None

    @property
    def auth_failures_percent(self) -> float | None:
        return 100 * self.failures / self.attempts if self.attempts else None

    @property
    def p95_ms(self) -> float | None:
        return percentile_ms(self.buckets, 0.95)


def total(parts: Iterable[Traffic]) -> Traffic:
    listed = list(parts)
    width = len(BUCKETS_MS) + 1
    padded = [[*part.buckets, *([0] * (width - len(part.buckets)))] for part in listed]
    return Traffic(
        requests=sum(part.requests for part in listed),
        errors=sum(part.errors for part in listed),
        attempts=sum(part.attempts for part in listed),
        failures=sum(part.failures for part in listed),
        buckets=[sum(column) for column in zip(*padded, strict=True)] if listed else [0] * width,
    )


def percentile_ms(buckets: Sequence[int], share: float) -> float | None:
    """Interpolated inside the step it falls into, as Prometheus does; None where nothing was timed."""
    wanted = share * sum(buckets)
    if not wanted:
        return None
    seen, lower = 0, 0
    for upper, count in zip(BUCKETS_MS, buckets, strict=False):
        if count and seen + count >= wanted:
            return lower + (upper - lower) * (wanted - seen) / count
        seen, lower = seen + count, upper
    return float(BUCKETS_MS[-1])


WIDTH: Final = 300
HEIGHT: Final = 72


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A line over the last hour. `lines` are the points of each unbroken piece in a WIDTH by HEIGHT field."""

    title: str
    unit: str
    status: Status
    now: float | None
    top: float
    threshold: float | None
    threshold_y: float | None
    lines: Sequence[str]
    areas: Sequence[str]

    @property
    def summary(self) -> str:
        """For whoever does not see the line."""
        now = f"{self.now:,.1f}".removesuffix(".0") if self.now is not None else "no"
        bound = f", the runbook's threshold is {self.threshold:g}{self.unit}" if self.threshold is not None else ""
        return f"{self.title}: {now}{self.unit} in the last {RECENT} minutes{bound}."


def chart(
    title: str,
    values: Sequence[float | None],
    *,
    now: float | None,
    unit: str = "",
    threshold: float | None = None,
    is_telling: bool = True,
) -> Chart:
    """`is_telling`: there was enough in the last minutes for the threshold to mean something."""
    seen = [value for value in values if value is not None]
    top = max([*seen, (threshold or 0) * 1.25, 1.0])
    is_over = threshold is not None and is_telling and now is not None and now > threshold
    lines = [_points(piece, len(values), top) for piece in _pieces(values)]
    return Chart(
        title=title,
        unit=unit,
        status="failed" if is_over else "ok",
        now=now,
        top=top,
        threshold=threshold,
        threshold_y=_y(threshold, top) if threshold is not None else None,
        lines=[" ".join(f"{x:g},{y:g}" for x, y in line) for line in lines],
        areas=[
            " ".join(f"{x:g},{y:g}" for x, y in [(line[0][0], HEIGHT), *line, (line[-1][0], HEIGHT)]) for line in lines
        ],
    )


def charts(minutes: Mapping[datetime, Traffic], *, now: datetime) -> Sequence[Chart]:
    """The four the runbook watches, minute by minute up to the last whole one."""
    start = now.replace(second=0, microsecond=0) - timedelta(minutes=MINUTES - 1)
    series = [minutes.get(start + timedelta(minutes=i), Traffic()) for i in range(MINUTES)]
    recent = total(series[-RECENT:])
    is_telling = recent.requests >= FEWEST
    return (
        chart("Requests", [part.requests for part in series], now=recent.requests / RECENT, unit="/min"),
        chart(
            "Errors",
            [part.errors_percent for part in series],
            now=recent.errors_percent,
            unit=" %",
            threshold=MAX_ERRORS_PERCENT,
            is_telling=is_telling,
        ),
        chart(
            "Answer time, p95",
            [part.p95_ms for part in series],
            now=recent.p95_ms,
            unit=" ms",
            threshold=MAX_P95_MS,
            is_telling=is_telling,
        ),
        chart(
            "Failed sign-ins",
            [part.auth_failures_percent for part in series],
            now=recent.auth_failures_percent,
            unit=" %",
            threshold=MAX_AUTH_FAILURES_PERCENT,
            is_telling=recent.attempts >= FEWEST,
        ),
    )


def _pieces(values: Sequence[float | None]) -> list[list[tuple[int, float]]]:
    """Runs of values without a gap: nothing is drawn where nothing was measured."""
    pieces: list[list[tuple[int, float]]] = []
    for index, value in enumerate(values):
        if value is None:
            continue
        if pieces and pieces[-1][-1][0] == index - 1:
            pieces[-1].append((index, value))
        else:
            pieces.append([(index, value)])
    return pieces


def _points(piece: Sequence[tuple[int, float]], count: int, top: float) -> list[tuple[float, float]]:
    step = WIDTH / max(1, count - 1)
    points = [(round(index * step, 1), _y(value, top)) for index, value in piece]
    # A single minute would be a line without length.
    return points if len(points) > 1 else [(max(0.0, points[0][0] - 2), points[0][1]), (points[0][0] + 2, points[0][1])]


def _y(value: float, top: float) -> float:
    return round(HEIGHT - min(value / top, 1.0) * (HEIGHT - 2), 1)
