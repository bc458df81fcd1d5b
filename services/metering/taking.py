"""Taking quota: one conditional statement decides.

Where all asks of a user fit it is the only one; where not, it is worked out under locked counters who gets how much.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from uuid import UUID

from libs.common.database import Connection
from libs.common.plans import Plans
from services.metering import domain, queries
from services.metering.accounts import domain as account_rules
from services.metering.accounts.domain import Account
from services.metering.domain import Amounts, Ask, Period, QuotaExceeded, Tally, Usage
from services.metering.grants.operations import credits_of
from services.metering.queries import Counter, Taking

MAX_ROUNDS: Final = 5


class Wanted(NamedTuple):
    """What is to be added to the held amounts of one user in one period."""

    key: UUID
    user_id: str
    amounts: Amounts
    account: Account
    period: Period

    def counter(self, metric: str) -> Counter:
        return self.user_id, metric, self.period.start


def wanted_by(asks: Sequence[Ask], known: Mapping[str, Account]) -> list[Wanted]:
    """What each ask wants of its user's current period."""
    wanted: list[Wanted] = []
    for ask in asks:
        account = known[ask.user_id]
        wanted.append(Wanted(ask.hold_id, ask.user_id, ask.amounts, account, account.period))
    return wanted


def takings_of(
    plans: Plans, asks: Sequence[tuple[Ask | Wanted, Period]], known: Mapping[str, Account]
) -> dict[Counter, Taking]:
    """What is asked of each counter in all, below what plans and overrides alone allow."""
    amounts, ends = dict[Counter, int](), dict[Counter, datetime]()
    for ask, period in asks:
        for metric, amount in ask.amounts.items():
            key = ask.user_id, metric, period.start
            if key in amounts:
                amounts[key] += amount
            else:
                amounts[key], ends[key] = amount, period.end
    return {
        key: Taking(ends[key], amount, account_rules.limits_of(plans, known[key[0]]).get(key[1]))
        for key, amount in amounts.items()
    }


async def take(conn: Connection, plans: Plans, wanted: Sequence[Wanted]) -> dict[UUID, QuotaExceeded]:
    """Take what fits from the counters; return the refusals. What is decided is what the conditional statement took."""
    if any(ask.account.has_grants for ask in wanted):
        # Grants are locked after counters: who has no counter to lock would lock them the other way round.
        await queries.make_counters(
            conn, {ask.counter(metric): ask.period.end for ask in wanted for metric in ask.amounts}
        )
    else:
        wanted = await _take_at_once(conn, plans, wanted)
    return await _decide(conn, plans, wanted) if wanted else {}


async def _take_at_once(conn: Connection, plans: Plans, wanted: Sequence[Wanted]) -> Sequence[Wanted]:
    """Take for all whose asks fit together, as nearly all do, in one statement; return the asks of everybody else.

    Afterwards the counters of everybody are there and locked, so that deciding locks nothing out of order.
    """
    takings = takings_of(plans, [(ask, ask.period) for ask in wanted], {ask.user_id: ask.account for ask in wanted})
    if any(taking.ceiling is not None and taking.amount > taking.ceiling for taking in takings.values()):
        return wanted  # the statement would not touch, and so not lock, a counter that can never have room
    taken = await queries.take_quota(conn, takings)
    if taken == takings.keys():
        return []
    short = {user_id for user_id, _, _ in takings.keys() - taken}
    back = {key: takings[key].amount for key in taken if key[0] in short}
    if back:
        await queries.give_quota_back(conn, back)
    return [ask for ask in wanted if ask.user_id in short]


async def _decide(conn: Connection, plans: Plans, wanted: Sequence[Wanted]) -> dict[UUID, QuotaExceeded]:
    counters = sorted({ask.counter(metric) for ask in wanted for metric in ask.amounts})
    now = wanted[0].account.read_at
    ends = {ask.counter(metric): ask.period.end for ask in wanted for metric in ask.amounts}
    for _ in range(MAX_ROUNDS):
        usage = await queries.lock_counters(conn, counters)
        ceilings = await _ceilings(conn, plans, wanted, usage, now)
        tallies = {key: Tally(usage=usage.get(key, Usage()), ceiling=ceilings.get(key)) for key in counters}
        refused = domain.decide(
            [ask.amounts for ask in wanted], [{m: tallies[ask.counter(m)] for m in ask.amounts} for ask in wanted]
        )
        takings = {
            key: Taking(period_end=ends[key], amount=tally.asked, ceiling=tally.ceiling)
            for key, tally in tallies.items()
            if tally.asked
        }
        taken = await queries.take_quota(conn, takings) if takings else set[Counter]()
        if taken == takings.keys():
            return {
                ask.key: refusal_of(ask, metric, tallies[ask.counter(metric)], now)
                for ask, metric in zip(wanted, refused, strict=True)
                if metric is not None
            }
        # A counter was made between the lock and the taking, and has no room. It is there now: decide again.
        await queries.give_quota_back(conn, {key: takings[key].amount for key in taken})
    raise domain.TooMuchContention("Too many asks at once; ask again.", retry_after_s=1)


async def _ceilings(
    conn: Connection, plans: Plans, wanted: Sequence[Wanted], usage: Mapping[Counter, Usage], now: datetime
) -> dict[Counter, int]:
    """The limit of each counter, with what grants add to it; counters without a limit are left out."""
    ceilings = _limits(plans, wanted)
    granted = {(ask.user_id, ask.period): ask.account for ask in wanted if ask.account.has_grants}
    for user_id, period in sorted(granted, key=lambda one: (one[0], one[1].start)):
        limits = account_rules.limits_of(plans, granted[user_id, period])
        metrics = {m for ask in wanted if (ask.user_id, ask.period) == (user_id, period) for m in ask.amounts}
        credit = await credits_of(conn, user_id=user_id, limits=limits, metrics=metrics, period=period, at=now)
        for metric in metrics & limits.keys() & credit.keys():
            key = (user_id, metric, period.start)
            ceilings[key] = credit[metric].ceiling(limit=limits[metric], used=usage.get(key, Usage()).used)
    return ceilings


def _limits(plans: Plans, wanted: Sequence[Wanted]) -> dict[Counter, int]:
    """What the plans and overrides alone allow."""
    limits: dict[Counter, int] = {}
    for ask in wanted:
        of_user = account_rules.limits_of(plans, ask.account)
        limits |= {ask.counter(metric): of_user[metric] for metric in ask.amounts if metric in of_user}
    return limits


def refusal_of(ask: Wanted, metric: str, tally: Tally, now: datetime) -> QuotaExceeded:
    """What an ask is told that this metric refused."""
    return QuotaExceeded(
        metric=metric,
        asked=ask.amounts[metric],
        limit=tally.ceiling or 0,
        usage=Usage(used=tally.usage.used, held=tally.usage.held + tally.asked),
        resets_at=ask.period.end,
        now=now,
    )
