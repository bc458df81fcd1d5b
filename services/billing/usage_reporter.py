"""Tells Stripe's meters what was used: each report once, however often we are killed or Stripe is away."""

import asyncio
from typing import Final

import structlog

from libs.common.database import Database, DatabaseUnavailable
from services.billing import usage_operations, usage_queries
from services.billing.domain import PaymentsRefused, UsageReport
from services.billing.jobs import describe
from services.billing.ports import Payments

log = structlog.get_logger(__name__)

CONCURRENCY: Final = 4
"""Few, so that a backlog of usage does not hold up what events ask for: all share one pace."""
POLL_INTERVAL_S: Final = 1.0


class UsageReporter:
    """Within a day a report is repeated under its identifier, which Stripe counts once; later Stripe is asked first."""

    def __init__(self, database: Database, payments: Payments) -> None:
        self._database = database
        self._payments = payments

    async def run(self) -> None:
        while True:
            try:
                sent = await self.run_once()
            except DatabaseUnavailable:
                await self._database.wait_until_up()
                continue
            if sent < CONCURRENCY:
                await asyncio.sleep(POLL_INTERVAL_S)

    async def run_once(self) -> int:
        """Report what is due now; return how much that was. What fails is given back with a pause and its reason."""
        async with self._database.transaction() as conn:
            reports = await usage_queries.lease_reports(conn, limit=CONCURRENCY)
        await asyncio.gather(*map(self._report, reports))
        return len(reports)

    async def _report(self, report: UsageReport) -> None:
        try:
            if report.is_stale and await self._was_counted(report):
                return
            await self._payments.report_usage(report)
        except PaymentsRefused as refusal:
            log.warning("usage_refused", identifier=report.identifier, error=refusal.detail)
            async with self._database.transaction() as conn:
                await usage_queries.mark_report(conn, report, state="refused", error=refusal.detail)
        except DatabaseUnavailable:
            raise
        except Exception as error:  # noqa: BLE001 - an edge: whatever went wrong, the report stays due and says why
            log.warning("usage_not_reported", identifier=report.identifier, error=describe(error))
            async with self._database.transaction() as conn:
                await usage_queries.postpone_report(conn, report, error=describe(error))
        else:
            async with self._database.transaction() as conn:
                await usage_queries.mark_report(conn, report, state="sent")

    async def _was_counted(self, report: UsageReport) -> bool:
        start, end = usage_operations.minute_of(report)
        theirs = await self._payments.usage_total(
            meter=report.meter, customer_id=report.stripe_customer_id, start=start, end=end
        )
        async with self._database.transaction() as conn:
            return await usage_operations.settle_stale_report(conn, report, theirs=theirs)
