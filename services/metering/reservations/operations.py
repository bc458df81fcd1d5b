"""Writes of reservations in one statement; what is odd about an ask is left to `reserve_many`."""

from collections.abc import Mapping, Sequence
from uuid import UUID

from libs.common.database import Connection
from libs.common.errors import VentureError
from libs.common.plans import Plans
from services.metering import domain
from services.metering.accounts.domain import Account
from services.metering.domain import Ask, Hold, Period, QuotaExceeded, Tally, Usage
from services.metering.operations import not_entitled
from services.metering.queries import Counter, Taking
from services.metering.reservations import queries
from services.metering.reservations.queries import Taken
from services.metering.taking import Wanted, refusal_of, takings_of, wanted_by


async def reserve_at_once(
    conn: Connection, plans: Plans, asks: Sequence[Ask], known: Mapping[str, Account]
) -> dict[UUID, Hold | VentureError]:
    """Decide what one statement without a transaction can decide, and return these verdicts by the holds' ids.

    The ids must differ. Left as they were, for `reserve_many` to decide: who has grants, who asks several times for
    what fits only in part, and everybody if an id names a hold already or somebody else came between.

    `known` was read by a statement before, and is not looked at again: `reserve_many` reads accounts without a lock,
    too, so an entitlement, a grant or an erasure that commits between reading and taking is too late for either.
    """
    verdicts: dict[UUID, Hold | VentureError] = {}
    plain: list[tuple[Ask, Period]] = []
    for ask in asks:
        account = known[ask.user_id]
        if (refusal := not_entitled(plans, account, ask)) is not None:
            verdicts[ask.hold_id] = refusal
        elif not account.has_grants:
            plain.append((ask, account.period))
    if not plain:
        return verdicts
    takings = takings_of(plans, plain, known)
    taken = await queries.insert_holds_with_quota(conn, plain, takings)
    if taken is None:
        return verdicts
    refusals = _refusals(wanted_by([ask for ask, _ in plain], known), takings, taken) if taken.short else {}
    return {**verdicts, **taken.holds, **refusals}


def _refusals(wanted: Sequence[Wanted], takings: Mapping[Counter, Taking], taken: Taken) -> dict[UUID, QuotaExceeded]:
    """Of users none of whose asks fits: to them it makes no difference that nothing was locked to find out."""
    refusals: dict[UUID, QuotaExceeded] = {}
    for user_id in {user_id for user_id, _ in taken.short} - taken.odd:
        asks = [ask for ask in wanted if ask.user_id == user_id]
        tallies = [{metric: _tally(ask.counter(metric), takings, taken) for metric in ask.amounts} for ask in asks]
        refused = domain.decide([ask.amounts for ask in asks], tallies)
        if None not in refused:
            refusals |= {
                ask.key: refusal_of(ask, metric, of_ask[metric], ask.account.read_at)
                for ask, metric, of_ask in zip(asks, refused, tallies, strict=True)
                if metric is not None
            }
    return refusals


def _tally(counter: Counter, takings: Mapping[Counter, Taking], taken: Taken) -> Tally:
    """A counter that is not short has room for each ask, because it has room for all of them."""
    usage = taken.short.get(counter[:2])
    return Tally(usage=usage or Usage(), ceiling=takings[counter].ceiling if usage else None)
