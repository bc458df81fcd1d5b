"""Taking quota: under locked counters it is worked out who gets how much, and one conditional statement decides."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from libs.common.database import Connection
from libs.common.plans import Plans
from services.metering import domain, queries
from services.metering.accounts import domain as account_rules
from services.metering.accounts.domain import Account
from services.metering.domain import Amounts, Period, QuotaExceeded, Tally, Usage
from services.metering.grants.domain import Credits
from services.metering.grants.operations import credits_of
from services.metering.queries import Counter, Taking

MAX_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is to be added to the held amounts of one user in one period."""

    key: UUID
    user_id: str
    amounts: Amounts
    account: Account
    period: Period

    def counter(self, metric: str) -> Counter:
        return self.user_id, metric, self.period.start


async def take(conn: Connection, plans: Plans, wanted: Sequence[Wanted]) -> dict[UUID, QuotaExceeded]:
    """Take what fits from the counters; return the refusals. What is decided is what the conditional statement took."""
    counters = sorted({ask.counter(metric) for ask in wanted for metric in ask.amounts})
    now = wanted[0].account.read_at
    ends = {ask.counter(metric): ask.period.end for ask in wanted for metric in ask.amounts}
    if any(ask.account.has_grants for ask in wanted):
        # Grants are locked after counters: who has no counter to lock would lock them the other way round.
        await queries.make_counters(conn, ends)
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
                ask.key: _refusal(ask, metric, tallies[ask.counter(metric)], now)
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
    ceilings: dict[Counter, int] = {}
    for user_id, period, account in _users_of(wanted):
        limits = account_rules.limits_of(plans, account)
        metrics = {m for ask in wanted if (ask.user_id, ask.period) == (user_id, period) for m in ask.amounts}
        credit: Mapping[str, Credits] = {}
        if account.has_grants:
            credit = await credits_of(conn, user_id=user_id, limits=limits, metrics=metrics, period=period, at=now)
        for metric in metrics & limits.keys():
            key = (user_id, metric, period.start)
            ceilings[key] = limits[metric]
            if metric in credit:
                used = usage.get(key, Usage()).used
                ceilings[key] = credit[metric].ceiling(limit=limits[metric], used=used)
    return ceilings


def _users_of(wanted: Sequence[Wanted]) -> list[tuple[str, Period, Account]]:
    found = {(ask.user_id, ask.period.start): (ask.user_id, ask.period, ask.account) for ask in wanted}
    return [found[key] for key in sorted(found)]


def _refusal(ask: Wanted, metric: str, tally: Tally, now: datetime) -> QuotaExceeded:
    return QuotaExceeded(
        metric=metric,
        asked=ask.amounts[metric],
        limit=tally.ceiling or 0,
        usage=Usage(used=tally.usage.used, held=tally.usage.held + tally.asked),
        resets_at=ask.period.end,
        now=now,
    )
