"""The worker: leases runs, executes them side by side, keeps the leases, and clears up after workers that vanished."""

import asyncio
import time
from typing import Final

import structlog

from libs.common.database import Database, DatabaseUnavailable
from libs.common.waiting import woken
from services.agents.runs import lease_queries, operations, queries
from services.agents.runs.domain import StopReason
from services.agents.runs.execution import Engine, Execution
from services.agents.runs.lease_queries import Caps

log = structlog.get_logger(__name__)

POLL_INTERVAL_S: Final = 0.25
WATCH_INTERVAL_S: Final = 0.5
"""How often the worker asks whether one of its runs is to be cancelled: the promise to the user is one second."""
LOST_RUNS_BATCH: Final = 100
SWEEP_BATCH: Final = 2_000
SWEEP_INTERVAL_S: Final = 3_600
SWEEP_PAUSE_S: Final = 0.1


class RunWorker:
    """`run` leases and executes, `watch` keeps the leases alive; both go on until they are cancelled."""

    def __init__(
        self,
        *,
        name: str,
        engine: Engine,
        caps: Caps,
        capacity: int,
        lease_s: float,
        heartbeat_s: float,
        shutdown_grace_s: float,
        wake: asyncio.Event,
    ) -> None:
        self._name = name
        self._engine = engine
        self._caps = caps
        self._capacity = capacity
        self._lease_s = lease_s
        self._heartbeat_s = heartbeat_s
        self._shutdown_grace_s = shutdown_grace_s
        self._wake = wake
        self._active: dict[asyncio.Task[None], Execution] = {}

    @property
    def _database(self) -> Database:
        return self._engine.database

    async def run(self) -> None:
        """Lease whenever there is room: roused by the consumer and by ending runs, polling for everybody else's.

        On cancellation the runs in hand get a moment to end; those that do not are handed back and count as no attempt.
        """
        has_been_away = False
        try:
            while True:
                self._wake.clear()
                room = self._capacity - len(self._active)
                try:
                    if has_been_away:
                        # Leases may have expired: renew ours first, or we would lease our own runs a second time.
                        await self._renew()
                        has_been_away = False
                    leased = await self._lease(room) if room else 0
                except DatabaseUnavailable:
                    has_been_away = True
                    await self._database.wait_until_up()
                    continue
                if leased < room or not room:
                    await woken(self._wake, within_s=POLL_INTERVAL_S)
        finally:
            await self._let_go()

    async def _lease(self, room: int) -> int:
        async with self._database.statement() as conn:
            started = await operations.start_runs(
                conn, caps=self._caps, worker=self._name, lease_s=self._lease_s, limit=room
            )
        for it in started:
            self._engine.mirror.offer(it.run.id, [it.event])
            execution = Execution(it, engine=self._engine)
            task = asyncio.create_task(execution.execute(), name=f"run {it.run.id}")
            self._active[task] = execution
            task.add_done_callback(self._forget)
        return len(started)

    def _forget(self, task: "asyncio.Task[None]") -> None:
        del self._active[task]
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            # The run stays leased until the lease expires; then another attempt takes it.
            log.error("run_abandoned", error=type(error).__name__, exc_info=error)

    async def _let_go(self) -> None:
        if self._active:
            await asyncio.wait(list(self._active), timeout=self._shutdown_grace_s)
        left = dict(self._active)
        for execution in left.values():
            execution.stop(StopReason.SHUTDOWN)
        if not left:
            return
        await asyncio.wait(list(left), timeout=self._shutdown_grace_s)
        try:
            async with self._database.transaction() as conn:
                await lease_queries.hand_back(conn, {it.run_id: it.lease_token for it in left.values()})
        except DatabaseUnavailable as error:
            log.warning("runs_not_handed_back", count=len(left), error=error.detail)

    async def watch(self) -> None:
        """Every half second ask for cancellations and lost runs; at every heartbeat renew the leases."""
        beaten_at = time.monotonic()
        while True:
            await asyncio.sleep(min(WATCH_INTERVAL_S, self._heartbeat_s))
            try:
                if time.monotonic() - beaten_at >= self._heartbeat_s:
                    await self._renew()
                    beaten_at = time.monotonic()
                await self._notice_cancellations()
                await self._finish_lost()
            except DatabaseUnavailable as error:
                # Our leases may expire meanwhile. Nobody can take them either, and the first renewal makes them ours.
                log.warning("watch_paused", error=error.detail)
                await self._database.wait_until_up()

    async def _renew(self) -> None:
        held = {it.run_id: it for it in self._active.values()}
        if not held:
            return
        leases = {run_id: it.lease_token for run_id, it in held.items()}
        async with self._database.transaction() as conn:
            ours = await lease_queries.renew_leases(conn, leases, lease_s=self._lease_s)
        for run_id in leases.keys() - ours:
            # Harmless for a run that is just ending by itself: its last transaction is over.
            held[run_id].stop(StopReason.FENCED)

    async def _notice_cancellations(self) -> None:
        held = {it.run_id: it for it in self._active.values()}
        if not held:
            return
        async with self._database.transaction() as conn:
            for run_id in await lease_queries.find_cancel_requested(conn, list(held)):
                held[run_id].stop(StopReason.CANCELLED)

    async def _finish_lost(self) -> None:
        async with self._database.transaction() as conn:
            finished = await operations.finish_lost_runs(conn, limit=LOST_RUNS_BATCH)
        for run_id, events in finished:
            self._engine.mirror.offer(run_id, events)


class EventSweeper:
    """Forgets the streams of runs that ended `keep_days` ago, an hour apart, in small transactions."""

    def __init__(self, *, database: Database, keep_days: int) -> None:
        self._database = database
        self._keep_days = keep_days

    async def run(self) -> None:
        while True:
            try:
                swept = await self.sweep_once()
            except DatabaseUnavailable as error:
                log.warning("sweep_paused", error=error.detail)
                swept = 0
            await asyncio.sleep(SWEEP_INTERVAL_S if swept < SWEEP_BATCH else SWEEP_PAUSE_S)

    async def sweep_once(self) -> int:
        async with self._database.transaction() as conn:
            return await queries.delete_old_events(conn, keep_days=self._keep_days, limit=SWEEP_BATCH)
