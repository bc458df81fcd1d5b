"""Billing's writes about usage that Stripe charges for: one transaction each, safe to repeat."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

import structlog

from libs.common.database import Connection
from libs.common.events.metering import UsageSettled
from libs.common.plans import Plans
from services.billing import queries, usage_queries, work_queries
from services.billing.domain import UsageErrors, UsageReport
from services.billing.usage_queries import NewReport
from services.billing.work_queries import Lease

log = structlog.get_logger(__name__)

MINUTE: Final = timedelta(minutes=1)
OLDEST_DAYS: Final = 35


async def record_usage(conn: Connection, events: Sequence[UsageSettled], *, plans: Plans) -> None:
    """Write down what Stripe must be told of settlements: the metrics that the plan Stripe bills charges by use."""
    payers = await usage_queries.find_payers(conn, {event.user_id for event in events})
    reports = [
        NewReport(
            hold_id=event.hold_id,
            metric=metric,
            user_id=event.user_id,
            stripe_customer_id=payer.stripe_customer_id,
            meter=metered.meter,
            value=event.amounts[metric],
            used_at=event.occurred_at,
        )
        for event in events
        if (payer := payers.get(event.user_id)) is not None and (tier := plans.tiers.get(payer.tier)) is not None
        for metric, metered in sorted(tier.metered.items())
        if event.amounts.get(metric, 0) > 0
    ]
    if reports:
        await usage_queries.insert_reports(conn, reports)


def minute_of(report: UsageReport) -> tuple[datetime, datetime]:
    start = report.used_at.replace(second=0, microsecond=0)
    return start, start + MINUTE


async def settle_stale_report(conn: Connection, report: UsageReport, *, theirs: int | None) -> bool:
    """Whether the report was counted already, now that Stripe no longer knows its name; marked as sent then.

    `theirs` is what Stripe counted in the report's minute (None: it has no such customer or meter). What exceeds our
    other reports of that minute is this one's.
    """
    await queries.lock_customer(conn, report.stripe_customer_id)  # another stale one must not claim the same excess
    start, end = minute_of(report)
    ours = await usage_queries.get_sent_total(
        conn, stripe_customer_id=report.stripe_customer_id, meter=report.meter, start=start, end=end
    )
    if theirs is None or theirs - ours < report.value:
        return False
    await usage_queries.mark_report(conn, report, state="sent")
    return True


async def refuse_usage(conn: Connection, lease: Lease, errors: UsageErrors) -> None:
    """Stripe says afterwards that it did not count usage. What its samples do not name, the comparison finds."""
    if not await work_queries.finish_refresh(conn, lease):
        return
    known = await usage_queries.refuse_reports(conn, errors.codes)
    log.warning("usage_not_counted", event_id=lease.object_id, count=errors.count, known=known)


async def forget_old_reports(conn: Connection, *, keep_days: int) -> None:
    """Delete reports that were sent long ago; Stripe takes usage of 35 days and no older."""
    await usage_queries.delete_old_reports(conn, keep_days=max(keep_days, OLDEST_DAYS))
