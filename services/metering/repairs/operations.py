"""Writes of repairs: resets, refunds and corrections of a run, ending a hold by hand."""

from collections.abc import Mapping
from uuid import UUID

from libs.common.database import Connection
from libs.common.ids import new_id
from libs.common.plans import Plans
from services.metering import domain, queries
from services.metering.accounts import domain as account_rules
from services.metering.accounts import queries as accounts
from services.metering.domain import Amounts, Hold, HoldEnded, HoldState
from services.metering.grants.operations import spend_credits
from services.metering.ledger import domain as ledger_rules
from services.metering.ledger import queries as ledger
from services.metering.ledger.domain import RunNotBooked


async def reset_usage(conn: Connection, *, user_id: UUID) -> None:
    """Give the current period's quota back, as the operator's DELETE does."""
    await queries.delete_counters(conn, user_id=str(user_id))


async def reset_tier(conn: Connection, *, tier: str) -> int:
    """The same for everybody of a tier; return how many counters were given back."""
    return await queries.delete_counters_of_tier(conn, tier=tier)


async def refund_run(conn: Connection, plans: Plans, *, run_id: UUID, by: str, reason: str) -> Amounts:
    """Take back all that stands booked for a run, once for ever; return what was taken back (of either sign)."""
    hold = await _booked_run(conn, run_id)
    key = ledger_rules.event_key(ledger_rules.REFUNDS, str(run_id))
    if not await ledger.claim_event(conn, key=key, digest=key):
        return {}
    booked = await ledger.sum_of_run(conn, user_id=hold.user_id, run_id=str(run_id), period_start=hold.period.start)
    changes = {row["metric_type"]: -row["amount"] for row in booked}
    costs = {row["metric_type"]: -row["cost_micro_usd"] for row in booked}
    event = (ledger_rules.REFUNDS, str(run_id), "refund")
    await _rebook(conn, plans, hold, changes, costs, event=event, attributes={"by": by, "reason": reason})
    return changes


async def correct_run(
    conn: Connection, plans: Plans, *, run_id: UUID, amounts: Amounts, by: str, reason: str
) -> Amounts:
    """Let what stands booked for a run be these amounts; metrics not named stay. Return what changed; repeatable."""
    hold = await _booked_run(conn, run_id)
    booked = await ledger.sum_of_run(conn, user_id=hold.user_id, run_id=str(run_id), period_start=hold.period.start)
    standing = {row["metric_type"]: row["amount"] for row in booked}
    changes = {
        metric: amount - standing.get(metric, 0)
        for metric, amount in amounts.items()
        if amount != standing.get(metric, 0)
    }
    event = (ledger_rules.CORRECTIONS, f"{run_id}:{new_id()}", "correction")
    await _rebook(conn, plans, hold, changes, {}, event=event, attributes={"by": by, "reason": reason})
    return changes


async def end_hold(conn: Connection, *, hold_id: UUID) -> Hold:
    """Sweep one hold by hand; should its run finish after all, it is booked all the same. Raises HoldEnded."""
    hold = await queries.lock_hold(conn, hold_id)
    if hold is None or hold.state is not HoldState.HELD:
        raise HoldEnded("There is no such open hold.")
    transition = domain.sweep(hold)
    await queries.mark_hold(conn, hold.id, transition)
    await queries.change_counters(conn, hold, held=transition.held)
    return hold


async def _booked_run(conn: Connection, run_id: UUID) -> Hold:
    """The run's hold, locked, so that its bookings change one after the other."""
    hold = await queries.lock_hold(conn, run_id)
    if hold is None or not hold.is_booked:
        raise RunNotBooked("Nothing is booked for this run.")
    return hold


async def _rebook(
    conn: Connection,
    plans: Plans,
    hold: Hold,
    changes: Amounts,
    costs: Mapping[str, int],
    *,
    event: tuple[str, str, str],
    attributes: Mapping[str, str],
) -> None:
    """Book changes of a run and move its counters; none falls below zero.

    What a reset has forgiven already cannot be given back once more: that part is booked against the refund.
    """
    changes = {metric: amount for metric, amount in changes.items() if amount}
    if not changes:
        return
    source, event_id, kind = event
    attributes = {"run_id": str(hold.id), **attributes}
    forgiven = await _forgiven_before(conn, hold, changes)
    await ledger.insert_entries(
        conn,
        changes,
        source=source,
        event_id=event_id,
        user_id=hold.user_id,
        kind=kind,
        period_start=hold.period.start,
        attributes=attributes,
        costs=costs,
    )
    await ledger.insert_entries(
        conn,
        forgiven,
        source=ledger_rules.RESETS,
        event_id=event_id,
        user_id=hold.user_id,
        kind="adjustment",
        period_start=hold.period.start,
        attributes={**attributes, "reason": "a reset had forgiven this before"},
    )
    applied = {metric: amount + forgiven[metric] for metric, amount in changes.items()}
    used = await queries.change_counters(conn, hold, used=applied)
    await _spend(conn, plans, hold, booked=applied, used=used)


async def _spend(conn: Connection, plans: Plans, hold: Hold, *, booked: Amounts, used: Amounts) -> None:
    account = await accounts.get_account(conn, plans, hold.user_id)
    if account.has_grants:
        await spend_credits(
            conn,
            user_id=hold.user_id,
            limits=account_rules.limits_of(plans, account),
            booked=booked,
            used=used,
            period=hold.period,
            at=hold.created_at,
        )


async def _forgiven_before(conn: Connection, hold: Hold, changes: Amounts) -> dict[str, int]:
    """How much of what is to be taken back the counters, now locked, do not hold any more."""
    keys = sorted((hold.user_id, metric, hold.period.start) for metric in changes)
    used = {metric: usage.used for (_, metric, _), usage in (await queries.lock_counters(conn, keys)).items()}
    return {metric: max(0, -amount - used.get(metric, 0)) for metric, amount in changes.items()}
