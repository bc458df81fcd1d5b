"""Writes of metering: each function is one use case inside the caller's transaction, and safe to repeat.

Invariants: `used + held <= limit` whenever something is reserved; counters equal the ledger's sums and the open holds;
a run's usage is booked once for ever, whatever happened to its hold before.
"""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.gateway import EntitlementsChanged
from libs.common.events.metering import (
    HoldDenied,
    HoldGranted,
    ThresholdReached,
    UsageSettled,
    UserErasedByMetering,
)
from libs.common.plans import Plans
from services.metering import domain, queries
from services.metering.domain import AccountDeleted, Amounts, Hold, HoldConflict, Metric, QuotaExceeded, Usage


async def reserve_usage(
    conn: Connection, plans: Plans, *, hold_id: UUID, user_id: UUID, amounts: Amounts, is_confirmed: bool = False
) -> Hold:
    """Hold all the amounts or nothing. Asked again with the same id, the answer is the same.

    A hold that was given back unused is taken afresh. Raises QuotaExceeded, HoldConflict, AccountDeleted; the caller's
    transaction must not be committed then.
    """
    claimed = await queries.insert_hold(
        conn, hold_id=hold_id, user_id=str(user_id), amounts=amounts, is_confirmed=is_confirmed
    )
    if claimed is None:
        hold = await _same_hold(conn, hold_id=hold_id, user_id=str(user_id), amounts=amounts)
        if not domain.needs_renewal(hold):
            return hold
        claimed = await queries.renew_hold(conn, hold_id), await queries.find_account(conn, str(user_id))
    hold, account = claimed
    if account.erased_as is not None:
        raise AccountDeleted("This account was deleted.")
    limits = plans.tier(account.tier).limits
    granted = await queries.take_quota(conn, hold, limits)
    if granted != set(amounts):
        raise await _refusal(conn, hold, limits, refused=min(set(amounts) - granted))
    return hold


async def release_hold(conn: Connection, *, hold_id: UUID, user_id: UUID) -> None:
    """Give an unconfirmed hold back; nothing to do if it has ended or is not the user's. Raises HoldInUse."""
    hold = await queries.lock_hold(conn, hold_id)
    if hold is None or hold.user_id != str(user_id):
        return
    transition = domain.release(hold)
    if transition is not None:
        await _apply(conn, hold, transition)


async def confirm_hold(conn: Connection, *, hold_id: UUID, user_id: UUID) -> bool:
    """Bind a hold to its accepted run; True if it had been given back before and is held again.

    A hold nobody knows (a restored backup) is recorded without amounts, so that the run still settles once.
    """
    if (await queries.find_account(conn, str(user_id))).erased_as is not None:
        return False
    hold = await _lock_or_record(conn, hold_id=hold_id, user_id=str(user_id))
    transition = domain.confirm(hold)
    if transition is not None:
        await _apply(conn, hold, transition)
    return transition is not None and bool(transition.held)


async def settle_hold(
    conn: Connection, plans: Plans, *, hold_id: UUID, user_id: UUID, used: Amounts, attributes: Mapping[str, Any]
) -> None:
    """Book what the run used and end its hold: ledger, counters, hold and events, all in the caller's transaction.

    Books whatever became of the hold (swept, released, unknown), in the period the run was accepted in, and books once.
    A deleted account's usage goes to the ledger under its pseudonym alone.
    """
    account = await queries.find_account(conn, str(user_id))
    if account.erased_as is not None:
        period = await queries.get_current_period(conn)
        await queries.insert_usage(conn, hold_id, used, user_id=account.erased_as, period=period, attributes=attributes)
        return
    hold = await _lock_or_record(conn, hold_id=hold_id, user_id=str(user_id))
    transition = domain.settle(hold)
    if transition is None:
        return
    booked = await queries.insert_usage(
        conn, hold_id, used, user_id=hold.user_id, period=hold.period, attributes=attributes
    )
    counters = await queries.change_counters(conn, hold, used=booked, held=transition.held)
    await queries.mark_hold(conn, hold_id, transition)
    settled = UsageSettled(
        user_id=user_id,
        hold_id=hold_id,
        amounts={metric.value: booked.get(metric, 0) for metric in used},
        period_start=hold.period.start,
    )
    reached = await _thresholds(conn, hold, counters, plans.tier(account.tier).limits)
    await outbox.add(conn, settled, *reached)


async def answer_proposal(conn: Connection, plans: Plans, *, run_id: UUID, user_id: UUID, amounts: Amounts) -> None:
    """Decide by event about a run that was proposed by event; its hold is confirmed from the start."""
    try:
        async with conn.savepoint():
            await reserve_usage(conn, plans, hold_id=run_id, user_id=user_id, amounts=amounts, is_confirmed=True)
    except AccountDeleted:
        return  # agents erases the proposed run itself
    except QuotaExceeded as refusal:
        answer = HoldDenied(
            user_id=user_id,
            run_id=run_id,
            metric=refusal.metric.value,
            limit=refusal.limit,
            used=refusal.usage.used,
            held=refusal.usage.held,
            resets_at=refusal.resets_at,
        )
        await outbox.add(conn, answer)
    else:
        await outbox.add(conn, HoldGranted(user_id=user_id, run_id=run_id))


async def sweep_expired_hold(conn: Connection, *, unconfirmed_for_s: float | None) -> Hold | None:
    """End one expired hold and return it; None if there is none. One a transaction: locks of one user only.

    Unconfirmed holds are swept only when overdue by `unconfirmed_for_s`, and not at all if that is None.
    """
    hold = await queries.lease_expired_hold(conn, unconfirmed_for_s=unconfirmed_for_s)
    if hold is not None:
        await _apply(conn, hold, domain.sweep(hold))
    return hold


async def reset_usage(conn: Connection, *, user_id: UUID) -> None:
    """Give the current period's quota back, as the operator's DELETE does."""
    await queries.delete_counters(conn, user_id=str(user_id))


async def change_entitlements(conn: Connection, event: EntitlementsChanged) -> None:
    await queries.upsert_entitlements(conn, event)


async def erase_user(conn: Connection, *, user_id: UUID) -> None:
    """Erase what metering knows of the user; the ledger stays, under a pseudonym nobody can lead back."""
    await queries.erase_user(conn, str(user_id))
    await outbox.add(conn, UserErasedByMetering(user_id=user_id))


async def _apply(conn: Connection, hold: Hold, transition: domain.Transition) -> None:
    await queries.mark_hold(conn, hold.id, transition)
    await queries.change_counters(conn, hold, used={}, held=transition.held)


async def _same_hold(conn: Connection, *, hold_id: UUID, user_id: str, amounts: Amounts) -> Hold:
    hold = await queries.lock_hold(conn, hold_id)
    if hold is None or hold.user_id != user_id or hold.amounts != amounts:
        raise HoldConflict("This id already names another hold.")
    return hold


async def _lock_or_record(conn: Connection, *, hold_id: UUID, user_id: str) -> Hold:
    hold = await queries.lock_hold(conn, hold_id)
    if hold is None:
        # Whoever comes second here waits for the first's row and finds it at the second look.
        await queries.insert_hold(conn, hold_id=hold_id, user_id=user_id, amounts={}, is_confirmed=True)
        hold = await queries.lock_hold(conn, hold_id)
    if hold is None or hold.user_id != user_id:
        raise HoldConflict("This id names the hold of another user.")
    return hold


async def _refusal(conn: Connection, hold: Hold, limits: Mapping[str, int], *, refused: Metric) -> QuotaExceeded:
    usage = await queries.find_usage(conn, user_id=hold.user_id, period=hold.period)
    return QuotaExceeded(
        metric=refused,
        asked=hold.amounts[refused],
        limit=limits[refused],
        usage=usage.get(refused, Usage()),
        resets_at=hold.period.end,
        now=await queries.get_now(conn),
    )


async def _thresholds(
    conn: Connection, hold: Hold, counters: Amounts, limits: Mapping[str, int]
) -> list[ThresholdReached]:
    return [
        ThresholdReached(
            user_id=UUID(hold.user_id),
            metric=metric.value,
            percent=percent,
            used=used,
            limit=limits[metric],
            period_end=hold.period.end,
        )
        for metric, used in counters.items()
        for percent in domain.thresholds_reached(used, limits.get(metric))
        if await queries.insert_threshold(conn, hold, metric, percent)
    ]
