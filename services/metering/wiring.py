"""Composition root of metering: settings in, running parts out, all closed on exit."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from libs.common.backbone import open_backbone
from libs.common.broker import QueueState, queue_name
from libs.common.clock import Clock, system_clock
from libs.common.database import Database
from libs.common.events.gateway import RunRequested
from libs.common.health import Check, Finding, at_most
from libs.common.lanes import Lanes
from libs.common.plans import Plans, load_plans
from libs.common.process import Service
from services.metering import queries
from services.metering.accounts import queries as accounts
from services.metering.api import HoldRoutes
from services.metering.consumers import subscriptions
from services.metering.ingest.api import IngestRoutes
from services.metering.jobs import HoldSweeper
from services.metering.ledger import queries as ledger
from services.metering.repairs.api import RepairRoutes
from services.metering.repairs.jobs import DriftWatch, LedgerWatch
from services.metering.reports.api import ReportRoutes
from services.metering.settings import Settings

MAX_OVERDUE_S: Final = 120
MIN_MONTHS_AHEAD: Final = 1


@asynccontextmanager
async def build(
    settings: Settings, *, plans: Plans | None = None, clock: Clock = system_clock
) -> AsyncGenerator[Service, None]:
    plans = plans or load_plans()
    async with open_backbone(settings, service="metering", subscriptions=subscriptions(plans), clock=clock) as backbone:
        news_queue = queue_name("metering", RunRequested.type)

        def news_state() -> QueueState | None:
            return backbone.consumer.states().get(news_queue)

        sweeper, drift = HoldSweeper(backbone.database, news_state), DriftWatch(backbone.database)
        checks = [
            *backbone.checks(),
            Check(
                name="users_at_limits",
                probe=lambda: _check_limits(backbone.database),
                runbook="usage-metrics",
                warns_only=True,
            ),
            Check(
                name="holds_expired_unswept_s",
                probe=lambda: _check_overdue(backbone.database),
                runbook="holds-not-swept",
            ),
            Check(
                name="ledger_months_ahead",
                probe=lambda: _check_months(backbone.database),
                runbook="ledger-months-missing",
            ),
            Check(name="usage_drift", probe=lambda: _check_drift(drift), runbook="usage-drift", warns_only=True),
        ]
        app = backbone.new_app(checks)
        holds = HoldRoutes(backbone.database, plans)
        app.include_router(holds.router())
        for routes in (ReportRoutes, IngestRoutes, RepairRoutes):
            app.include_router(routes(backbone.database, plans).router())
        yield Service(
            name="metering",
            app=backbone.edge(Lanes(app, holds.lanes())),
            health_app=backbone.health_app(checks),
            common_loops=backbone.common_loops,
            worker_loops=(*backbone.worker_loops, sweeper.run, drift.run, LedgerWatch(backbone.database, plans).run),
        )


async def _check_overdue(database: Database) -> Finding:
    async with database.transaction() as conn:
        return at_most(await queries.oldest_overdue_s(conn), MAX_OVERDUE_S)


async def _check_months(database: Database) -> Finding:
    async with database.transaction() as conn:
        ahead = await ledger.months_ahead(conn)
    return Finding(status="ok" if ahead >= MIN_MONTHS_AHEAD else "failed", value=ahead, threshold=MIN_MONTHS_AHEAD)


async def _check_limits(database: Database) -> Finding:
    async with database.transaction() as conn:
        return at_most(await accounts.count_users_at_limits(conn), 0)


async def _check_drift(watch: DriftWatch) -> Finding:
    """A process that only answers requests does not look; a worker does."""
    return Finding(status="disabled") if watch.count is None else at_most(watch.count, 0)
