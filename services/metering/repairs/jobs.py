"""Work that goes through all users in bites: proving that counters equal the ledger, mending them, keeping watch.

Safe to be killed anywhere: a proof changes nothing, each user's counters are mended in a transaction of their own, and
what a watch notes is noted once or only counted.
"""

import asyncio
from dataclasses import dataclass, field
from typing import Any, Final

import prometheus_client
import structlog

from libs.common.clock import iso_millis
from libs.common.database import Database, DatabaseUnavailable, Record
from libs.common.plans import Plans
from services.metering.ledger import queries as ledger
from services.metering.repairs import queries

log = structlog.get_logger(__name__)

USERS_AT_ONCE: Final = 2_000
MONTHS_AHEAD: Final = 3
WATCH_INTERVAL_S: Final = 300.0
DRIFT_USERS_AT_ONCE: Final = 500
DRIFT_PAUSE_S: Final = 5.0
DRIFT_SHARE: Final = 0.02
"""At most this share of one connection's time goes into looking for drift, however much there is to look through."""
SPIKE_FACTOR: Final = 10
SPIKE_FLOORS: Final = {"runs": 100, "tokens": 200_000}
"""Below these amounts an hour is never worth an operator's look, whatever the user is used to."""

SPIKES: Final = prometheus_client.Counter(
    "metering_usage_spikes", "Hours in which a user used far more than that user is used to.", ["metric"]
)


@dataclass(slots=True, kw_only=True)
class Side:
    """One side of the comparison: how many lines, what they add up to, and a checksum over all of them."""

    lines: int = 0
    amount: int = 0
    held: int = 0
    checksum: int = 0

    def add(self, part: list[Any]) -> None:
        self.lines += int(part[0])
        self.amount += int(part[1])
        self.held += int(part[2])
        self.checksum = (self.checksum + int(part[3])) % 2**128

    def as_json(self) -> dict[str, Any]:
        return {
            "lines": self.lines,
            "amount": self.amount,
            "held": self.held,
            "checksum": f"{self.checksum:032x}",
        }


@dataclass(slots=True, kw_only=True)
class Proof:
    counters: Side = field(default_factory=Side)
    ledger: Side = field(default_factory=Side)
    mended: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    @property
    def is_equal(self) -> bool:
        return self.counters == self.ledger


async def prove(database: Database, *, users_at_once: int = USERS_AT_ONCE) -> Proof:
    """Compare all counters with the ledger and the open holds; equal checksums on both sides prove them equal."""
    proof = Proof()
    after, until = "", None
    while True:
        async with database.transaction() as conn:
            until = await queries.find_bound(conn, after=after, users=users_at_once)
            sides = await queries.compare(conn, after=after, until=until)
        if "counters" in sides:
            proof.counters.add(sides["counters"])
        if "ledger" in sides:
            proof.ledger.add(sides["ledger"])
        if until is None:
            return proof
        after = until


async def rebuild(database: Database, *, users_at_once: int = USERS_AT_ONCE) -> Proof:
    """Mend every counter that differs and prove the result; tells what it mended."""
    mended: list[dict[str, Any]] = []
    after, until = "", None
    while True:
        async with database.transaction() as conn:
            until = await queries.find_bound(conn, after=after, users=users_at_once)
            found = await queries.find_drift(conn, after=after, until=until)
        mended += await _mend(database, found)
        if until is None:
            break
        after = until
    proof = await prove(database)
    proof.mended = mended
    return proof


async def rebuild_user(database: Database, user_id: str) -> list[dict[str, Any]]:
    """The same for one user; return what differed, as it was."""
    async with database.transaction() as conn:
        found = await queries.find_drift_of(conn, user_id)
    return await _mend(database, found)


async def _mend(database: Database, found: list[Record]) -> list[dict[str, Any]]:
    for row in found:
        async with database.transaction() as conn:
            await queries.rebuild_counter(conn, (row["user_id"], row["metric_type"], row["period_start"]))
        log.warning("counter_rebuilt", user_id=row["user_id"], metric=row["metric_type"])
    return [{**dict(row), "period_start": iso_millis(row["period_start"])} for row in found]


class LedgerWatch:
    """Makes the ledger's months ahead, and looks for usage far above a user's own habit."""

    def __init__(self, database: Database, plans: Plans, *, interval_s: float = WATCH_INTERVAL_S) -> None:
        self._database = database
        self._plans = plans
        self._interval_s = interval_s

    async def run(self) -> None:
        while True:
            try:
                await self.run_once()
            except DatabaseUnavailable:
                await self._database.wait_until_up()
            await asyncio.sleep(self._interval_s)

    async def run_once(self) -> None:
        async with self._database.transaction() as conn:
            made = await ledger.make_months(
                conn, behind_days=self._plans.ingest.max_age_days + 31, ahead_months=MONTHS_AHEAD
            )
        if made:
            log.info("ledger_months_made", count=made)
        async with self._database.transaction() as conn:
            spikes = await queries.insert_spikes(conn, factor=SPIKE_FACTOR, floors=SPIKE_FLOORS)
        for spike in spikes:
            SPIKES.labels(spike["metric_type"]).inc()
            log.warning(
                "usage_spike",
                user_id=spike["user_id"],
                metric=spike["metric_type"],
                amount=spike["amount"],
                habit_per_hour=spike["habit_per_hour"],
            )


class DriftWatch:
    """Looks for counters that differ from the ledger, some users at a time, round after round, without hurry.

    `count`: how many differed in the last whole round, or in this one so far if those are more; None before a look.
    """

    def __init__(self, database: Database, *, users_at_once: int = DRIFT_USERS_AT_ONCE) -> None:
        self.count: int | None = None
        self._database = database
        self._users_at_once = users_at_once
        self._after = ""
        self._last_round = 0
        self._this_round = 0

    async def run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            pause_s, began_at = DRIFT_PAUSE_S, clock()
            try:
                await self.run_once()
                pause_s = max(pause_s, (clock() - began_at) * (1 / DRIFT_SHARE - 1))
            except DatabaseUnavailable as error:
                # Again and again with a database that is well: the look takes too long, and drift is left to doctor.
                log.warning("drift_look_failed", error=error.detail)
                await self._database.wait_until_up()
            await asyncio.sleep(pause_s)

    async def run_once(self) -> None:
        """The next users of the round. Counter and ledger change in one commit, so what differs is no passing state."""
        async with self._database.transaction() as conn:
            until = await queries.find_bound(conn, after=self._after, users=self._users_at_once)
            self._this_round += len(await queries.find_drift(conn, after=self._after, until=until))
        if until is None:
            self._after, self._last_round, self._this_round = "", self._this_round, 0
        else:
            self._after = until
        self.count = max(self._last_round, self._this_round)
