"""Writes of holds: each function is one use case inside the caller's transaction, and safe to repeat.

Invariants: `used + held <= limit` (and what grants add to it) whenever something is reserved; counters equal the
ledger's sums and the open holds; a run's usage is booked once for ever, whatever happened to its hold before.
"""

from collections.abc import Mapping, Sequence
from uuid import UUID

import structlog

from libs.common import outbox
from libs.common.database import Connection
from libs.common.errors import VentureError
from libs.common.events.metering import HoldDenied, HoldGranted, UsageSettled
from libs.common.plans import Plans
from services.metering import domain, queries
from services.metering.accounts import domain as account_rules
from services.metering.accounts import queries as accounts
from services.metering.accounts.domain import Account
from services.metering.accounts.operations import Standing, thresholds_told
from services.metering.domain import (
    AccountDeleted,
    Amounts,
    Ask,
    FeatureNotIncluded,
    Hold,
    HoldConflict,
    HoldState,
    Metric,
    QuotaExceeded,
)
from services.metering.grants.operations import spend_credits
from services.metering.ledger import domain as ledger_rules
from services.metering.ledger import queries as ledger
from services.metering.ledger.domain import Settlement
from services.metering.ledger.queries import Ending
from services.metering.taking import Wanted, take, wanted_by

log = structlog.get_logger(__name__)


async def reserve_many(conn: Connection, plans: Plans, asks: Sequence[Ask]) -> list[Hold | VentureError]:
    """Decide several asks in their order; each gets its own verdict, and a refused one leaves no trace.

    The ids must differ. Verdicts are a hold, QuotaExceeded, HoldConflict, FeatureNotIncluded or AccountDeleted.
    """
    known = await accounts.find_accounts(conn, plans, sorted({ask.user_id for ask in asks}))
    verdicts: dict[UUID, Hold | VentureError] = {
        ask.hold_id: refusal for ask in asks if (refusal := not_entitled(plans, known[ask.user_id], ask)) is not None
    }
    admitted = [(ask, known[ask.user_id].period) for ask in asks if ask.hold_id not in verdicts]
    claimed = await queries.insert_holds(conn, admitted)
    renewable = await _settle_repeated(conn, [ask for ask, _ in admitted if ask.hold_id not in claimed], verdicts)
    open_asks = [ask for ask, _ in admitted if ask.hold_id not in verdicts]
    refusals = await take(conn, plans, wanted_by(open_asks, known)) if open_asks else {}
    refused = [hold_id for hold_id in refusals if hold_id in claimed]
    if refused:
        await queries.delete_holds(conn, refused)
    granted = [hold_id for hold_id in renewable if hold_id not in refusals]
    if granted:
        periods = {ask.hold_id: period for ask, period in admitted}
        claimed |= await queries.renew_holds(conn, [(hold_id, periods[hold_id]) for hold_id in granted])
    return [{**claimed, **verdicts, **refusals}[ask.hold_id] for ask in asks]


async def reserve_usage(
    conn: Connection, plans: Plans, *, hold_id: UUID, user_id: UUID, amounts: Amounts, is_confirmed: bool = False
) -> Hold:
    """Hold all the amounts or nothing; raises what `reserve_many` gives as a verdict."""
    ask = Ask(hold_id=hold_id, user_id=str(user_id), amounts=amounts, is_confirmed=is_confirmed)
    (verdict,) = await reserve_many(conn, plans, [ask])
    if isinstance(verdict, VentureError):
        raise verdict
    return verdict


async def extend_hold(conn: Connection, plans: Plans, *, hold_id: UUID, user_id: UUID, totals: Amounts) -> Hold:
    """Let a run's hold hold these amounts at least, in its own period; all of it or nothing. Safe to repeat.

    Asked before the step that needs it, so that what cannot be paid for is not begun. Raises HoldConflict, HoldEnded,
    QuotaExceeded.
    """
    hold = await queries.lock_hold(conn, hold_id)
    if hold is None or hold.user_id != str(user_id):
        raise HoldConflict("There is no such hold of this user.")
    more = domain.growth(hold, totals)
    if more:
        account = await accounts.get_account(conn, plans, hold.user_id)
        asks = [Wanted(key=hold_id, user_id=hold.user_id, amounts=more, account=account, period=hold.period)]
        refusal = (await take(conn, plans, asks)).get(hold_id)
        if refusal is not None:
            raise refusal
    grown = {metric: hold.amounts.get(metric, 0) + amount for metric, amount in more.items()}
    return await queries.extend_hold(conn, hold_id, grown)


async def release_hold(conn: Connection, *, hold_id: UUID, user_id: UUID) -> None:
    """Give an unconfirmed hold back; nothing to do if it has ended or is not the user's. Raises HoldInUse."""
    hold = await queries.lock_hold(conn, hold_id)
    if hold is None or hold.user_id != str(user_id):
        return
    transition = domain.release(hold)
    if transition is not None:
        await _apply(conn, hold, transition)


async def confirm_hold(conn: Connection, plans: Plans, *, hold_id: UUID, user_id: UUID) -> bool:
    """Bind a hold to its accepted run; True if it had been given back before and is held again."""
    return bool(await confirm_holds(conn, plans, {hold_id: user_id}))


async def confirm_holds(conn: Connection, plans: Plans, runs: Mapping[UUID, UUID]) -> list[UUID]:
    """The same for the runs of several users; return the holds that had been given back and are held again.

    A hold nobody knows (a restored backup) is recorded without amounts, so that the run still settles once.
    """
    confirmed = await queries.confirm_open_holds(conn, runs)
    rest = {hold_id: user_id for hold_id, user_id in runs.items() if hold_id not in confirmed}
    return await _confirm_odd_holds(conn, plans, rest) if rest else []


async def settle_hold(conn: Connection, plans: Plans, settlement: Settlement) -> None:
    """Book what a run used and end its hold: ledger, counters, hold and events, all in the caller's transaction.

    Books whatever became of the hold (swept, released, unknown), in the period the run was accepted in, and books once;
    the same run told again with other amounts is kept as a conflict. A deleted account's usage goes to the ledger under
    its pseudonym alone.
    """
    await settle_holds(conn, plans, [settlement])


async def settle_holds(conn: Connection, plans: Plans, settlements: Sequence[Settlement]) -> None:
    """The same for many: what they need is looked up at once, and what is plain about them is written at once."""
    holds = await queries.lock_holds(conn, [one.hold_id for one in settlements])
    known = await accounts.find_accounts(conn, plans, sorted({str(one.user_id) for one in settlements}))
    plain, odd = _plain_endings(settlements, holds, known)
    told = await _end_holds(conn, plans, known, plain) if plain else []
    for one in odd:
        account = known[str(one.user_id)]
        # Taken out: a run that is told twice in one batch is looked up again, as the first left it.
        hold = holds.pop(one.hold_id, None) or await queries.lock_hold(conn, one.hold_id)
        if account.erased_as is not None:
            await _book_for_the_erased(conn, account, one)
            continue
        hold = hold or await _record_hold(conn, account, hold_id=one.hold_id, user_id=one.user_id)
        _require_owner(hold, one.user_id)
        transition = domain.settle(hold)
        if transition is None:
            await _keep_conflict(conn, hold, one)
            continue
        told += await _end_holds(conn, plans, known, [Ending(hold, transition, one)])
    settled = [event for event, _ in told]
    await outbox.add(conn, *settled, *await thresholds_told(conn, plans, [standing for _, standing in told]))


async def answer_proposal(conn: Connection, plans: Plans, *, run_id: UUID, user_id: UUID, amounts: Amounts) -> None:
    """Decide by event about a run that was proposed by event; its hold is confirmed from the start."""
    try:
        await reserve_usage(conn, plans, hold_id=run_id, user_id=user_id, amounts=amounts, is_confirmed=True)
    except AccountDeleted:
        return  # agents erases the proposed run itself
    except QuotaExceeded as refusal:
        answer = HoldDenied(
            user_id=user_id,
            run_id=run_id,
            metric=refusal.metric,
            limit=refusal.limit,
            used=refusal.usage.used,
            held=refusal.usage.held,
            resets_at=refusal.resets_at,
        )
        await outbox.add(conn, answer)
    else:
        await outbox.add(conn, HoldGranted(user_id=user_id, run_id=run_id))


async def sweep_hold(conn: Connection, hold: Hold) -> None:
    """End a leased, expired hold. One a transaction: locks of one user only."""
    await _apply(conn, hold, domain.sweep(hold))


def not_entitled(plans: Plans, account: Account, ask: Ask) -> AccountDeleted | FeatureNotIncluded | None:
    """Why this account may not ask that, whatever quota it has left."""
    if account.erased_as is not None:
        return AccountDeleted("This account was deleted.")
    missing = account_rules.missing_feature(plans, account, ask.features)
    if missing is not None:
        return FeatureNotIncluded(f"Your plan does not include {missing}.", feature=missing, tier=account.tier)
    return None


async def _confirm_odd_holds(conn: Connection, plans: Plans, runs: Mapping[UUID, UUID]) -> list[UUID]:
    """Those that are confirmed, ended, somebody else's or unknown."""
    holds = await queries.lock_holds(conn, sorted(runs))
    reopened: list[UUID] = []
    for hold_id, user_id in runs.items():
        hold = holds.get(hold_id) or await _record_unknown(conn, plans, hold_id=hold_id, user_id=user_id)
        if hold is None:
            continue
        _require_owner(hold, user_id)
        transition = domain.confirm(hold)
        if transition is not None:
            await _apply(conn, hold, transition)
            if transition.held:
                reopened.append(hold_id)
    return reopened


async def _settle_repeated(
    conn: Connection, asks: Sequence[Ask], verdicts: dict[UUID, Hold | VentureError]
) -> set[UUID]:
    """Give the answer of before to asks whose id is taken; return those whose hold was given back and is asked anew."""
    if not asks:
        return set()
    holds = await queries.lock_holds(conn, [ask.hold_id for ask in asks])
    renewable: set[UUID] = set()
    for ask in asks:
        hold = holds.get(ask.hold_id)
        if hold is None or hold.user_id != ask.user_id or not domain.is_same_ask(hold, ask):
            verdicts[ask.hold_id] = HoldConflict("This id already names another hold.")
        elif domain.needs_renewal(hold):
            renewable.add(ask.hold_id)
        else:
            verdicts[ask.hold_id] = hold
    return renewable


async def _apply(conn: Connection, hold: Hold, transition: domain.Transition) -> None:
    await queries.mark_hold(conn, hold.id, transition)
    await queries.change_counters(conn, hold, held=transition.held)


async def _record_unknown(conn: Connection, plans: Plans, *, hold_id: UUID, user_id: UUID) -> Hold | None:
    account = await accounts.get_account(conn, plans, str(user_id))
    if account.erased_as is not None:
        return None
    return await _record_hold(conn, account, hold_id=hold_id, user_id=user_id)


async def _record_hold(conn: Connection, account: Account, *, hold_id: UUID, user_id: UUID) -> Hold:
    """A hold without amounts for a run nobody asked a hold for. Whoever comes second finds the first's."""
    ask = Ask(hold_id=hold_id, user_id=str(user_id), amounts={}, is_confirmed=True)
    made = await queries.insert_holds(conn, [(ask, account.period)])
    hold = made.get(hold_id) or await queries.lock_hold(conn, hold_id)
    if hold is None:
        raise HoldConflict("This hold was erased at this moment.")
    return hold


def _plain_endings(
    settlements: Sequence[Settlement], holds: dict[UUID, Hold], known: Mapping[str, Account]
) -> tuple[list[Ending], list[Settlement]]:
    """Take out the open holds of users without credits, each with the first settlement of it; return the rest, too."""
    plain: list[Ending] = []
    odd: list[Settlement] = []
    for one in settlements:
        hold, account = holds.get(one.hold_id), known[str(one.user_id)]
        transition = None if hold is None or hold.user_id != str(one.user_id) else domain.settle(hold)
        is_open = transition is not None and transition.state is HoldState.SETTLED
        if hold is None or transition is None or not is_open or account.has_grants or account.erased_as is not None:
            odd.append(one)
        else:
            plain.append(Ending(holds.pop(one.hold_id), transition, one))
    return plain, odd


async def _end_holds(
    conn: Connection, plans: Plans, known: Mapping[str, Account], endings: Sequence[Ending]
) -> list[tuple[UsageSettled, Standing]]:
    """Book these runs and end their holds; return what is to be told. Only one at a time if credits are to be spent."""
    booked_before, counters = await ledger.book_settlements(conn, endings)
    told: list[tuple[UsageSettled, Standing]] = []
    for hold, _, one in endings:
        account = known[hold.user_id]
        booked = {metric: 0 if hold.id in booked_before else amount for metric, amount in one.used.items()}
        used = {metric: counters[hold.user_id, metric, hold.period.start] for metric in booked}
        await _spend(conn, plans, account, hold, booked=booked, counters=used)
        event = UsageSettled(user_id=one.user_id, hold_id=hold.id, amounts=booked, period_start=hold.period.start)
        told.append((event, Standing(user_id=hold.user_id, account=account, period=hold.period, used=used)))
    return told


async def _spend(
    conn: Connection, plans: Plans, account: Account, hold: Hold, *, booked: Amounts, counters: Amounts
) -> None:
    """Charge to credits what the plan does not cover."""
    if account.has_grants and any(booked.values()):
        await spend_credits(
            conn,
            user_id=hold.user_id,
            limits=account_rules.limits_of(plans, account),
            booked=booked,
            used=counters,
            period=hold.period,
            at=hold.created_at,
        )


def _require_owner(hold: Hold, user_id: UUID) -> None:
    if hold.user_id != str(user_id):
        raise HoldConflict("This id names the hold of another user.")


async def _keep_conflict(conn: Connection, hold: Hold, settlement: Settlement) -> None:
    """A run that is booked was told again: the same is nothing new, anything else is kept for the operators."""
    key = ledger_rules.event_key(ledger_rules.RUNS, str(hold.id))
    booked = (await ledger.find_digests(conn, [key])).get(key)
    if booked is not None and booked != settlement.digest:
        log.warning("usage_conflict", source=ledger_rules.RUNS, event_id=str(hold.id))
        await ledger.upsert_conflict(
            conn,
            source=ledger_rules.RUNS,
            event_id=str(hold.id),
            digest=settlement.digest,
            user_id=hold.user_id,
            content=settlement.content,
        )


async def _book_for_the_erased(conn: Connection, account: Account, settlement: Settlement) -> None:
    key = ledger_rules.event_key(ledger_rules.RUNS, str(settlement.hold_id))
    if not await ledger.claim_event(conn, key=key, digest=settlement.digest):
        return
    await ledger.insert_entries(
        conn,
        settlement.used,
        source=ledger_rules.RUNS,
        event_id=str(settlement.hold_id),
        user_id=account.erased_as or "",
        kind="usage",
        period_start=account.period.start,
        attributes=settlement.attributes,
        costs={Metric.TOKENS: settlement.cost_micro_usd},
    )
