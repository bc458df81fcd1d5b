"""Counting a batch of events: each once for ever, all in one transaction, in the order of locks all batches share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import structlog

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.metering import ThresholdReached
from libs.common.plans import Plans
from services.metering.accounts import domain as account_rules
from services.metering.accounts import queries as accounts
from services.metering.accounts.domain import Account
from services.metering.accounts.operations import thresholds_told
from services.metering.domain import Period
from services.metering.grants.operations import spend_credits
from services.metering.ingest import domain, queries
from services.metering.ingest.domain import Gauge, Reading, UsageEvent
from services.metering.ingest.queries import Change, Entry
from services.metering.ledger import queries as ledger
from services.metering.queries import Counter

log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class Receipt:
    """What became of a batch; `rejected` is by the event's place in it."""

    accepted: int = 0
    duplicates: int = 0
    rejected: dict[int, str] = field(default_factory=dict[int, str])


class _Placed(NamedTuple):
    """An event whose time and period are known."""

    event: UsageEvent
    at: datetime
    period: Period
    account: Account


async def count_events(conn: Connection, plans: Plans, events: Sequence[UsageEvent]) -> Receipt:
    receipt = Receipt()
    known = await accounts.find_accounts(conn, plans, sorted({event.user_id for event in events}))
    placed = await _place(conn, plans, events, known, receipt)
    unique = {one.event.key: one for one in reversed(placed)}  # of the same name in one batch, the first
    if unique:
        claimed = await queries.claim_events(conn, [one.event for one in unique.values()])
        new = [one for key, one in unique.items() if key in claimed]
        receipt.accepted = len(new)
        await _tell_known(conn, placed, unique, claimed, receipt)
        await _count(conn, plans, sorted(new, key=lambda one: one.event.place))
    return receipt


async def _place(
    conn: Connection, plans: Plans, events: Sequence[UsageEvent], known: Mapping[str, Account], receipt: Receipt
) -> list[_Placed]:
    """Find each event's period; refuse those from too long ago or from the future, by the database's clock."""
    now = next(iter(known.values())).read_at
    window = domain.Window.around(now, plans.ingest)
    own_periods = set(plans.tiers_by_subscription)
    by_subscription: list[tuple[str, datetime]] = []
    timely: list[tuple[UsageEvent, datetime]] = []
    for event in events:
        at = event.at or now
        reason = window.refusal(at)
        if reason is not None:
            receipt.rejected[event.place] = reason
            continue
        timely.append((event, at))
        if known[event.user_id].tier in own_periods:
            by_subscription.append((event.user_id, at))
    periods = await queries.find_periods(conn, by_subscription) if by_subscription else {}
    months: dict[datetime, Period] = {}

    def period_of(user_id: str, at: datetime) -> Period:
        own = periods.get((user_id, at))
        if own is not None:
            return own
        month = months.get(at)
        if month is None:
            start, end = domain.month_of(at)
            month = months[at] = Period(start=start, end=end)
        return month

    return [
        _Placed(event=event, at=at, period=period_of(event.user_id, at), account=known[event.user_id])
        for event, at in timely
    ]


async def _tell_known(
    conn: Connection,
    placed: Sequence[_Placed],
    unique: Mapping[bytes, _Placed],
    claimed: set[bytes],
    receipt: Receipt,
) -> None:
    """Tell duplicates from contradictions: the same name with other content is refused, and kept to be looked at."""
    taken = [one.event for one in placed if one.event.key not in claimed or unique[one.event.key] is not one]
    if not taken:
        return
    said = await ledger.find_digests(conn, [event.key for event in taken if event.key not in claimed])
    said |= {key: unique[key].event.digest for key in claimed}
    for event in taken:
        if said.get(event.key) == event.digest:
            receipt.duplicates += 1
            continue
        receipt.rejected[event.place] = "conflicts_with_an_earlier_event"
        log.warning("usage_conflict", source=event.source, event_id=event.event_id)
        await ledger.upsert_conflict(
            conn,
            source=event.source,
            event_id=event.event_id,
            digest=event.digest,
            user_id=event.user_id,
            content={
                "metric": event.metric,
                "readings": {reading.meter: reading.value for reading in event.readings},
                "properties": event.properties.decode(),
            },
        )


async def _count(conn: Connection, plans: Plans, placed: Sequence[_Placed]) -> None:
    readings = [(one, reading) for one in placed for reading in one.event.readings]
    gauges = await _lock(conn, readings)
    fresh = await _see(conn, readings)
    entries: list[Entry] = []
    changes: dict[Counter, Change] = {}
    for one, reading in readings:
        counter = _counter(one, reading)
        value_is_new = reading.seen is not None and (counter, reading.seen) in fresh
        if value_is_new and reading.seen is not None:
            fresh.discard((counter, reading.seen))
        gauge = gauges.get(counter) or Gauge()
        amount = domain.effect(gauge, reading, at=one.at, event_id=one.event.event_id, is_new_value=value_is_new)
        entries.append(_entry(one, reading, amount))
        if one.account.erased_as is None:
            change = changes.setdefault(counter, Change(period_end=one.period.end))
            change.amount += amount
            change.latest = gauge.latest
    if entries:
        await queries.insert_entries(conn, entries)
    if changes:
        used = await queries.add_to_counters(conn, changes)
        await _tell_users(conn, plans, placed, changes, used)


async def _lock(conn: Connection, readings: Iterable[tuple[_Placed, Reading]]) -> dict[Counter, Gauge]:
    """Lock the counters of this batch if any does not simply add up; sums need no look at what was there before."""
    counters = {_counter(one, reading): one.period.end for one, reading in readings if one.account.erased_as is None}
    moving = {
        _counter(one, reading)
        for one, reading in readings
        if reading.aggregation in {"max", "latest", "unique"} and one.account.erased_as is None
    }
    if not moving:
        return {}
    gauges = await queries.lock_gauges(conn, counters)
    return {counter: gauge for counter, gauge in gauges.items() if counter in moving}


async def _see(conn: Connection, readings: Iterable[tuple[_Placed, Reading]]) -> set[tuple[Counter, bytes]]:
    values = {
        (_counter(one, reading), reading.seen)
        for one, reading in readings
        if reading.seen is not None and one.account.erased_as is None
    }
    return await queries.insert_seen_values(conn, values) if values else set()


async def _tell_users(
    conn: Connection,
    plans: Plans,
    placed: Sequence[_Placed],
    changes: Mapping[Counter, Change],
    used: Mapping[Counter, int],
) -> None:
    """What follows from new counters: credits are spent, thresholds told."""
    known = {one.event.user_id: one.account for one in placed}
    touched: dict[tuple[str, datetime], list[Counter]] = {}
    for counter in changes:
        touched.setdefault((counter[0], counter[2]), []).append(counter)
    reached: list[ThresholdReached] = []
    for (user_id, start), counters in touched.items():
        account = known[user_id]
        limits = account_rules.limits_of(plans, account)
        mine = {counter[1]: used[counter] for counter in counters if counter[1] in limits}
        if not mine:
            continue
        period = Period(start=start, end=changes[counters[0]].period_end)
        if account.has_grants:
            booked = {metric: changes[user_id, metric, start].amount for metric in mine}
            at = max(one.at for one in placed if one.event.user_id == user_id)
            await spend_credits(conn, user_id=user_id, limits=limits, booked=booked, used=mine, period=period, at=at)
        reached += await thresholds_told(conn, plans, account, user_id=user_id, period=period, used=mine)
    await outbox.add(conn, *reached)


def _counter(one: _Placed, reading: Reading) -> Counter:
    return one.event.user_id, reading.meter, one.period.start


def _entry(one: _Placed, reading: Reading, amount: int) -> Entry:
    is_first = reading is one.event.readings[0]
    return Entry(
        event=one.event,
        user_id=one.account.erased_as or one.event.user_id,
        meter=reading.meter,
        amount=amount,
        value=None if reading.aggregation == "count" else reading.value,
        period_start=one.period.start,
        at=one.at,
        cost_micro_usd=one.event.cost_micro_usd if is_first else 0,
    )
