"""`venture doctor`: every check of every replica and engine, with value, threshold and the runbook's section."""

import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final

import redis
import typer

from ops.failure import Failure
from ops.home import Home
from ops.venture import services
from ops.venture.database import looking
from ops.venture.desk import NOT_WELL, AsJson, Desk, leave
from ops.venture.parked import with_broker

LEAST_FREE_GB: Final = 2
_COLUMNS: Final = ("status", "where", "check", "value", "threshold", "runbook")
_BAD: Final = ("failed", "warning")
_POLL_S: Final = 1.0

Row = dict[str, Any]


def doctor(
    *,
    every: Annotated[bool, typer.Option("--all", help="Also show what is well.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as failures.")] = False,
    wait_s: Annotated[int, typer.Option("--wait", help="Ask again for so many seconds until all is well.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Look at everything and name what is ill with the section that mends it. Exit 1 if something is."""
    desk = Desk(as_json=as_json)
    deadline = time.monotonic() + wait_s
    while True:
        rows = examine(desk)
        ill = [row for row in rows if row["status"] == "failed" or (strict and row["status"] == "warning")]
        if not ill or time.monotonic() > deadline:
            break
        time.sleep(_POLL_S)
    shown = [row for row in rows if every or row["status"] in _BAD]
    if as_json:
        desk.answer({"status": "failed" if ill else "ok", "checks": rows})
    else:
        desk.table(shown, columns=_COLUMNS, empty="")
        desk.say(_summary(rows))
    if ill:
        leave(NOT_WELL)


def _summary(rows: list[Row]) -> str:
    counts = {status: sum(row["status"] == status for row in rows) for status in ("ok", "disabled", *_BAD)}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    return f"{len(rows)} checks: {said}."


def examine(desk: Desk) -> list[Row]:
    """All checks, side by side: a service that does not answer must not make the others wait."""
    probes: list[Callable[[], list[Row]]] = [
        *(_replica_probe(name, address) for name, address in desk.access.services.items()),
        lambda: _database(desk),
        lambda: _broker(desk),
        lambda: _redis(desk),
        _disk,
    ]
    with ThreadPoolExecutor(len(probes)) as pool:
        started = [pool.submit(probe) for probe in probes]
        found = [row for probe in started for row in probe.result()]
    order = {"failed": 0, "warning": 1, "ok": 2, "disabled": 3}
    return sorted(found, key=lambda row: (order[row["status"]], row["where"], row["check"]))


def _row(where: str, check: str, runbook: str, *, is_ok: bool, value: Any = None, threshold: Any = None) -> Row:
    status = "ok" if is_ok else "failed"
    return {
        "status": status,
        "where": where,
        "check": check,
        "value": value,
        "threshold": threshold,
        "runbook": runbook,
    }


def _replica_probe(name: str, address: str) -> Callable[[], list[Row]]:
    def probe() -> list[Row]:
        try:
            report = services.readiness(address)
        except Failure as failure:
            return [_row(name, "answers", "service-down", is_ok=False, value=str(failure))]
        rows = [
            {
                "status": check["status"],
                "where": name,
                "check": check["name"],
                "value": check["value"],
                "threshold": check["threshold"],
                "runbook": check["runbook"],
            }
            for check in report["checks"]
        ]
        return [_row(name, "answers", "service-down", is_ok=True), *rows]

    return probe


def _database(desk: Desk) -> list[Row]:
    section = "database-connection-errors"
    try:
        with looking(desk) as conn:
            row = (
                conn.execute(
                    """
                SELECT (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend') AS used,
                       current_setting('max_connections')::int AS most,
                       (SELECT count(*) FROM metering.drift) AS drift,
                       (SELECT coalesce(extract(epoch FROM max(now() - xact_start)), 0)::float8
                        FROM pg_stat_activity WHERE state LIKE 'idle in transaction%') AS idle_s
                """
                ).fetchone()
                or {}
            )
    except Failure as failure:
        return [_row("postgres", "answers", section, is_ok=False, value=str(failure))]
    return [
        _row("postgres", "answers", section, is_ok=True),
        _row("postgres", "connections", section, is_ok=row["used"] < 0.9 * row["most"], value=row["used"],
             threshold=int(0.9 * row["most"])),
        _row("postgres", "idle_in_transaction_s", section, is_ok=row["idle_s"] < 60, value=round(row["idle_s"], 1),  # noqa: PLR2004
             threshold=60),
        _row("postgres", "usage_drift", "usage-drift", is_ok=row["drift"] == 0, value=row["drift"], threshold=0),
    ]  # fmt: skip


def _broker(desk: Desk) -> list[Row]:
    try:
        queues = with_broker(desk, lambda broker: broker.queues())
    except Failure as failure:
        return [_row("rabbitmq", "answers", "events-not-flowing", is_ok=False, value=str(failure))]
    orphaned = [name for name, queue in queues.items() if not queue.consumers]
    parked = {name: queue.parked for name, queue in queues.items() if queue.parked}
    return [
        _row("rabbitmq", "answers", "events-not-flowing", is_ok=True),
        _row("rabbitmq", "queues_without_consumer", "events-not-flowing", is_ok=not orphaned,
             value=orphaned or 0, threshold=0),
        _row("rabbitmq", "parked", "parked-messages", is_ok=not parked, value=parked or 0, threshold=0),
    ]  # fmt: skip


def _redis(desk: Desk) -> list[Row]:
    url = desk.access.get("REDIS_URL")
    try:
        with redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]
            url, socket_timeout=2, socket_connect_timeout=2
        ) as client:
            client.ping()  # pyright: ignore[reportUnknownMemberType]
    except (redis.RedisError, OSError, ValueError) as error:
        return [_row("redis", "answers", "redis", is_ok=False, value=type(error).__name__)]
    return [_row("redis", "answers", "redis", is_ok=True)]


def _disk() -> list[Row]:
    """Where a stack beside us keeps its data; in a container, where the container's own layer lies."""
    disks = [path for path in Home.of().disks if path.exists()] or [Path("/")]
    free_gb = min(shutil.disk_usage(path).free for path in disks) / 1e9
    is_ok = free_gb >= LEAST_FREE_GB  # before rounding: the alert does not round either
    return [_row("disk", "free_gb", "disk-full", is_ok=is_ok, value=round(free_gb, 2), threshold=LEAST_FREE_GB)]


def failing(rows: list[Row]) -> Iterator[Row]:
    return (row for row in rows if row["status"] == "failed")
