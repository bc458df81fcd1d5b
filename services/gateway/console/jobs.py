"""What the console's history is made of: minutes of traffic that replicas add to, a look at health every 15 s."""

import asyncio
from collections.abc import Iterator
from typing import Any, Final

import structlog

from libs.common.database import Database, DatabaseUnavailable
from libs.common.telemetry import REQUESTS
from services.gateway.console import queries
from services.gateway.console.charts import BUCKETS_MS, Traffic
from services.gateway.console.state import Board

log = structlog.get_logger(__name__)

TRAFFIC_INTERVAL_S: Final = 10
SAMPLE_INTERVAL_S: Final = 15
CLEANING_EVERY: Final = 240
"""Samples between two cleanings: an hour."""

_SIGN_IN: Final = frozenset({"/auth/v1/token", "/auth/v1/verify"})
_FAULT: Final = 500
_REFUSALS: Final = range(400, 500)
_TOO_MANY: Final = 429


class TrafficBook:
    """Adds what this process answered to the minute it was answered in, as its own metrics counted it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._told = Traffic(buckets=[0] * (len(BUCKETS_MS) + 1))

    async def run(self) -> None:
        self.begin()
        while True:
            await asyncio.sleep(TRAFFIC_INTERVAL_S)
            try:
                await self.tell()
            except DatabaseUnavailable:
                continue  # counters go on counting: the next word includes this one

    def begin(self) -> None:
        """What was answered before belongs to no minute we know."""
        self._told = counted()

    async def tell(self) -> None:
        now = counted()
        part = Traffic(
            requests=now.requests - self._told.requests,
            errors=now.errors - self._told.errors,
            attempts=now.attempts - self._told.attempts,
            failures=now.failures - self._told.failures,
            buckets=[new - old for new, old in zip(now.buckets, self._told.buckets, strict=True)],
        )
        if part.requests:
            async with self._database.transaction() as conn:
                await queries.add_traffic(conn, part)
        self._told = now


class HealthSampler:
    """One replica's look each interval, for all of them."""

    def __init__(self, database: Database, board: Board) -> None:
        self._database = database
        self._board = board

    async def run(self) -> None:
        looks = 0
        while True:
            # First wait: a house that is just starting up is not ill.
            await asyncio.sleep(SAMPLE_INTERVAL_S)
            try:
                await self.sample()
                looks += 1
                if looks % CLEANING_EVERY == 1:
                    async with self._database.transaction() as conn:
                        await queries.delete_old_samples(conn)
            except DatabaseUnavailable:
                await self._database.wait_until_up()

    async def sample(self) -> bool:
        """Look and keep what was seen; False if another replica does it this time."""
        async with self._database.transaction() as conn:
            slot = await queries.claim_sample(conn, interval_s=SAMPLE_INTERVAL_S)
        if slot is None:
            return False
        health = await self._board.health()
        async with self._database.transaction() as conn:
            await queries.save_sample(conn, slot, health.statuses)
        return True


def counted() -> Traffic:
    """All that this process has answered so far, without health, the console itself and its streams."""
    requests = errors = attempts = failures = 0
    buckets = [0] * (len(BUCKETS_MS) + 1)
    for name, labels, value in _samples():
        route, status = labels["route"], int(labels["status"])
        if labels["service"] != "gateway" or route.startswith(("/health", "/console")):
            continue
        if name.endswith("_count"):
            requests += value
            errors += value if status >= _FAULT else 0
            if route in _SIGN_IN and labels["method"] == "POST":
                attempts += value
                failures += value if status in _REFUSALS and status != _TOO_MANY else 0
        elif name.endswith("_bucket") and not _is_patient(route):
            _add_bucket(buckets, labels["le"], value)
    return Traffic(
        requests=requests, errors=errors, attempts=attempts, failures=failures, buckets=_differences(buckets)
    )


def _samples() -> Iterator[tuple[str, dict[str, str], int]]:
    for metric in REQUESTS.collect():
        for sample in metric.samples:
            yield sample.name, sample.labels, int(sample.value)


def _is_patient(route: str) -> bool:
    """Streams and answers that a client chose to wait for: their time says nothing about us."""
    return route.endswith(("/events", " wait"))


def _add_bucket(buckets: list[int], upper: str, value: int) -> None:
    if upper == "+Inf":
        buckets[-1] += value
        return
    upper_ms = round(float(upper) * 1000)
    if upper_ms in BUCKETS_MS:
        buckets[BUCKETS_MS.index(upper_ms)] += value


def _differences(cumulative: list[int]) -> list[Any]:
    return [later - earlier for earlier, later in zip([0, *cumulative], cumulative, strict=False)]
