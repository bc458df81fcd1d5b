"""The sweeper: ends expired holds, and leaves alone those whose confirmation may still be on its way.

Guards against giving quota back that an accepted run relies on: a hold without confirmation is swept only on proof that
the news of its run, had there been any, would have reached us.
"""

import asyncio
from collections.abc import Callable
from typing import Final

import prometheus_client
import structlog

from libs.common.broker import QueueState
from libs.common.database import Database, DatabaseUnavailable
from services.metering import operations, queries

log = structlog.get_logger(__name__)

INTERVAL_S: Final = 5.0
UNCONFIRMED_LIFETIME_S: Final = 60
"""As `queries.insert_hold` gives it."""
NEWS_TRAVEL_S: Final = 45
"""How long the gateway's news may take once the broker is back: its relay waits up to 30 s between two attempts, and up
to 10 s for rows of a killed one."""

SWEPT: Final = prometheus_client.Counter(
    "metering_holds_swept",
    "Expired holds the sweeper ended, by whether a run was known to run under them.",
    ["confirmed"],
)
OVERDUE: Final = prometheus_client.Gauge(
    "metering_holds_expired_unswept_seconds", "For how long the most overdue open hold has been expired."
)


class NewsWatch:
    """Works out up to when the news of accepted runs has certainly arrived.

    The proof is the queue of those news, seen empty after the broker has been in reach for NEWS_TRAVEL_S on end.
    Without a broker there is no proof, so an outage of any length sweeps nothing that may have been accepted.
    """

    def __init__(self) -> None:
        self._in_reach_since_s: float | None = None
        self._proved_at_s: float | None = None

    def observe(self, state: QueueState | None, *, at_s: float) -> None:
        """Take in what the broker said of the queue, or None while it says nothing."""
        if state is None or not state.consumers:
            self._in_reach_since_s = None
            return
        if self._in_reach_since_s is None:
            self._in_reach_since_s = at_s
        if state.waiting == 0 and at_s - self._in_reach_since_s >= NEWS_TRAVEL_S:
            self._proved_at_s = at_s

    def overdue_needed_s(self, *, at_s: float) -> float | None:
        """For how long an unconfirmed hold must have been expired to be surely abandoned; None if nothing is sure.

        A hold is abandoned if it was made NEWS_TRAVEL_S before the proof: its news would have come by then.
        """
        if self._proved_at_s is None:
            return None
        return max(0.0, at_s - self._proved_at_s + NEWS_TRAVEL_S - UNCONFIRMED_LIFETIME_S)


class HoldSweeper:
    def __init__(
        self, database: Database, news_queue: Callable[[], QueueState | None], *, interval_s: float = INTERVAL_S
    ) -> None:
        self._database = database
        self._news_queue = news_queue
        self._interval_s = interval_s
        self._news = NewsWatch()

    async def run(self) -> None:
        while True:
            try:
                await self.run_once()
            except DatabaseUnavailable:
                await self._database.wait_until_up()
            await asyncio.sleep(self._interval_s)

    async def run_once(self) -> int:
        """End every hold that may be ended now, one a transaction; return how many."""
        at_s = asyncio.get_running_loop().time()
        self._news.observe(self._news_queue(), at_s=at_s)
        swept = await sweep_holds(self._database, unconfirmed_for_s=self._news.overdue_needed_s(at_s=at_s))
        async with self._database.transaction() as conn:
            OVERDUE.set(await queries.oldest_overdue_s(conn))
        return swept


async def sweep_holds(database: Database, *, unconfirmed_for_s: float | None) -> int:
    """End what has expired, the most overdue first; whose counters somebody else has locked is left for the next time.

    Otherwise one transaction that stands open over one user's counters would keep everybody's holds.
    """
    swept = 0
    passed_over: list[str] = []
    while True:
        hold = None
        try:
            async with database.transaction() as conn:
                hold = await queries.lease_expired_hold(conn, unconfirmed_for_s=unconfirmed_for_s, but_of=passed_over)
                if hold is None:
                    return swept
                await operations.sweep_hold(conn, hold)
        except DatabaseUnavailable:
            if hold is None:
                raise
            log.warning("hold_not_swept", hold_id=str(hold.id))
            passed_over.append(hold.user_id)
            continue
        swept += 1
        SWEPT.labels("yes" if hold.is_confirmed else "no").inc()
        log.warning("hold_swept", hold_id=str(hold.id), is_confirmed=hold.is_confirmed)
