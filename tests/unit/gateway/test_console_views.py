"""What the console shows, from plain values."""

from datetime import UTC, datetime, timedelta

import pytest

from services.gateway.console.charts import BUCKETS_MS, HEIGHT, Traffic, chart, charts, percentile_ms, total
from services.gateway.console.domain import (
    MINUTES,
    ServiceHealth,
    bars,
    dependencies_of,
    measured,
    plain_name,
    read_health,
    safe_path,
    strip,
    timeline,
    worst,
)

NOW = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)


def bucket(upper_ms: int, count: int) -> list[int]:
    return [count if upper_ms == each else 0 for each in (*BUCKETS_MS, None)]


def test_the_95th_percentile_lies_inside_its_step_as_prometheus_has_it() -> None:
    assert percentile_ms([], 0.95) is None
    assert percentile_ms(bucket(100, 100), 0.95) == pytest.approx(50 + 50 * 0.95)
    slow = total([Traffic(buckets=bucket(100, 90)), Traffic(buckets=bucket(5000, 10))])
    assert percentile_ms(slow.buckets, 0.95) == pytest.approx(2000 + 3000 * 0.5)


def test_a_threshold_is_passed_only_where_there_is_enough_to_tell() -> None:
    minute = NOW.replace(second=0)
    few = {minute: Traffic(requests=2, errors=1, buckets=bucket(5, 2))}
    many = {minute: Traffic(requests=100, errors=6, attempts=50, failures=4, buckets=bucket(5000, 100))}
    assert [it.status for it in charts(few, now=NOW)] == ["ok", "ok", "ok", "ok"]
    assert [it.status for it in charts(many, now=NOW)] == ["ok", "failed", "failed", "ok"]
    assert [it.threshold for it in charts({}, now=NOW)] == [None, 5, 2000, 10]


def test_nothing_is_drawn_where_nothing_was_measured() -> None:
    drawn = chart("Errors", [None, 1.0, 2.0, None, 4.0], now=None)
    assert len(drawn.lines) == 2
    ys = [float(point.split(",")[1]) for line in drawn.lines for point in line.split()]
    assert all(0 <= y <= HEIGHT for y in ys)
    assert min(ys) == ys[-1]  # the highest value is the highest point


def test_a_strip_has_a_tick_a_minute_and_each_shows_the_worst_it_saw() -> None:
    samples = [
        (NOW - timedelta(minutes=2), {"billing": "ok"}),
        (NOW - timedelta(seconds=20), {"billing": "failed"}),
        (NOW - timedelta(seconds=5), {"billing": "ok"}),
        (NOW - timedelta(minutes=MINUTES + 1), {"billing": "away"}),
    ]
    ticks, up = strip(samples, "billing", now=NOW)  # pyright: ignore[reportArgumentType]
    assert len(ticks) == MINUTES
    assert [tick.status for tick in ticks[-3:]] == ["ok", "unknown", "failed"]
    assert up == pytest.approx(100 * 2 / 3)
    assert strip([], "billing", now=NOW)[1] is None


def test_a_service_is_as_ill_as_its_worst_check_and_a_choice_is_no_illness() -> None:
    checks = [{"name": "database", "status": "ok"}, {"name": "stripe", "status": "disabled"}]
    assert read_health("billing", {"checks": checks}).status == "ok"
    assert read_health("billing", {"checks": [*checks, {"name": "x", "status": "warning"}]}).status == "warning"
    assert worst([]) == "unknown"


def test_a_dependency_is_what_the_worst_off_service_says_of_it() -> None:
    services = [
        ServiceHealth(name="a", status="ok", checks=[{"name": "database", "status": "ok"}]),
        ServiceHealth(name="b", status="failed", checks=[{"name": "database", "status": "failed"}]),
        ServiceHealth(name="c", status="away"),
    ]
    assert dependencies_of(services)["PostgreSQL"] == "failed"
    assert dependencies_of(services)["Stripe"] == "unknown"


def test_bars_show_what_is_used_and_held_and_never_more_than_all() -> None:
    metrics = {
        "runs": {"used": 45, "held": 10, "limit": 50},
        "tokens": {"used": 60, "held": 0, "limit": 50},
        "exports": {"used": 3, "held": 0, "limit": None},
        "templates": {"used": 1, "held": 0, "limit": 10_000},
    }
    runs, tokens, exports, templates = bars(metrics)
    assert (runs.used_x, runs.held_x, runs.status) == (90, 10, "warning")
    assert (tokens.used_x, tokens.status) == (100, "failed")
    assert (exports.used_x, exports.status) == (0, "ok")
    assert templates.used_x > 0  # what is not nothing is shown as something


def test_a_timeline_folds_the_written_text_into_one_step() -> None:
    def event(seconds: float, kind: str, **data: object) -> dict[str, object]:
        return {"type": f"run.{kind}", "data": data, "created_at": (NOW + timedelta(seconds=seconds)).isoformat()}

    events = [
        event(0, "queued"),
        event(1, "started", attempt=1),
        event(2, "delta", text="abc"),
        event(3.5, "delta", text="defg"),
        event(4, "succeeded"),
    ]
    steps = timeline(NOW.isoformat(), events)
    assert [(step.name, step.count) for step in steps] == [
        ("queued", 1),
        ("started", 1),
        ("delta", 2),
        ("succeeded", 1),
    ]
    assert steps[2].detail == "7 characters in 1.5 s"
    assert steps[1].detail == "attempt 1"
    assert steps[3].after_s == 4


def test_checks_are_told_with_their_units() -> None:
    assert (plain_name("outbox_oldest_unsent_s"), measured(3.25, "outbox_oldest_unsent_s")) == (
        "outbox oldest unsent",
        "3.2 s",
    )
    assert (plain_name("parked_messages"), measured(2, "parked_messages")) == ("parked messages", "2")
    assert measured("never yet", "reconciled_age_s") == "never yet"


@pytest.mark.parametrize(
    "path", ["//evil.example", "/v1/runs", "https://evil.example", "/console/\\evil", "/console//x"]
)
def test_signing_in_leads_nowhere_but_to_the_console(path: str) -> None:
    assert safe_path(path) == "/console"
