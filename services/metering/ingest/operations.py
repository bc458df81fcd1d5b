"""Counting a batch of events: each once for ever, all in one transaction, in the order of locks all batches share."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Final, NamedTuple

import structlog

from libs.common import outbox
from libs.common.database import Connection
from libs.common.plans import Plans
from services.metering.accounts import domain as account_rules
from services.metering.accounts import queries as accounts
from services.metering.accounts.domain import Account
from services.metering.accounts.operations import Standing, thresholds_told
from services.metering.domain import Period
from services.metering.grants.operations import spend_credits
from services.metering.ingest import domain, queries
from services.metering.ingest.domain import Gauge, Reading, UsageEvent
from services.metering.ingest.queries import Change, Entry
from services.metering.ledger import queries as ledger
from services.metering.queries import Counter

log = structlog.get_logger(__name__)

ACCEPTED: Final = "accepted"
DUPLICATE: Final = "duplicate"


class _Placed(NamedTuple):
    """An event whose time and period are known, and its place in the batch."""

    place: int
    event: UsageEvent
    at: datetime
    period: Period
    account: Account


async def count_events(conn: Connection, plans: Plans, events: Sequence[UsageEvent]) -> list[str]:
    """Count the events; return what became of each: ACCEPTED, DUPLICATE, or the reason why it was refused."""
    verdicts = [ACCEPTED] * len(events)
    placed = await _place(conn, plans, events, verdicts)
    firsts: dict[bytes, _Placed] = {}
    for one in placed:
        firsts.setdefault(one.event.key, one)
    if not firsts:
        return verdicts
    claimed = await queries.claim_events(conn, [one.event for one in firsts.values()])
    if len(claimed) < len(placed):
        await _tell_known(conn, placed, firsts, claimed, verdicts)
    await _count(conn, plans, [one for key, one in firsts.items() if key in claimed])
    return verdicts


async def _place(
    conn: Connection, plans: Plans, events: Sequence[UsageEvent], verdicts: list[str]
) -> Sequence[_Placed]:
    """Find each event's period; refuse those from too long ago or from the future, by the database's clock."""
    known = await accounts.find_accounts(conn, plans, sorted({event.user_id for event in events}))
    now = next(iter(known.values())).read_at
    window = domain.Window.around(now, plans.ingest)
    own = await _own_periods(conn, plans, events, known)
    months: list[Period] = []
    placed: list[_Placed] = []
    for place, event in enumerate(events):
        account, at = known[event.user_id], event.at
        if at is None:
            placed.append(_Placed(place, event, now, account.period, account))
            continue
        reason = window.refusal(at)
        if reason is None:
            period = own.get((event.user_id, at)) or _month_of(at, months)
            placed.append(_Placed(place, event, at, period, account))
        else:
            verdicts[place] = reason
    return placed


async def _own_periods(
    conn: Connection, plans: Plans, events: Sequence[UsageEvent], known: Mapping[str, Account]
) -> Mapping[tuple[str, datetime], Period]:
    """The periods of events that say when they happened, of users whose plan counts by the subscription."""
    tiers = set(plans.tiers_by_subscription)
    wanted = {
        (event.user_id, event.at) for event in events if event.at is not None and known[event.user_id].tier in tiers
    }
    return await queries.find_periods(conn, list(wanted)) if wanted else {}


def _month_of(at: datetime, months: list[Period]) -> Period:
    """The calendar month of an instant, from those of the batch so far: there are two or three."""
    for month in months:
        if month.start <= at < month.end:
            return month
    months.append(domain.month_of(at))
    return months[-1]


async def _tell_known(
    conn: Connection,
    placed: Sequence[_Placed],
    firsts: Mapping[bytes, _Placed],
    claimed: set[bytes],
    verdicts: list[str],
) -> None:
    """Tell duplicates from contradictions: the same name with other content is refused, and kept to be looked at."""
    taken = [one for one in placed if one.event.key not in claimed or firsts[one.event.key] is not one]
    said = await ledger.find_digests(conn, [one.event.key for one in taken if one.event.key not in claimed])
    for place, event, *_ in taken:
        booked = firsts[event.key].event.digest if event.key in claimed else said.get(event.key)
        if booked == event.digest:
            verdicts[place] = DUPLICATE
            continue
        verdicts[place] = "conflicts_with_an_earlier_event"
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
                "properties": event.properties,
            },
        )


async def _count(conn: Connection, plans: Plans, placed: Sequence[_Placed]) -> None:
    """Book what the events did. If any does more than add up, all counters are locked first, and looked at."""
    moving = [
        (one, reading)
        for one in placed
        for reading in one.event.readings
        if not reading.adds_up and one.account.erased_as is None
    ]
    gauges = await queries.lock_gauges(conn, _ends(placed)) if moving else {}
    fresh = await _see(conn, moving)
    entries: list[Entry] = []
    changes: dict[Counter, Change] = {}
    for one in placed:
        for reading in one.event.readings:
            counter = (one.event.user_id, reading.meter, one.period.start)
            gauge = gauges.get(counter) or Gauge()
            amount = reading.value
            if not reading.adds_up:
                seen = (counter, reading.seen)
                amount = domain.effect(
                    gauge, reading, at=one.at, event_id=one.event.event_id, is_new_value=seen in fresh
                )
                fresh.discard(seen)
            entries.append(_entry(one, reading, amount))
            if one.account.erased_as is None:
                change = changes.get(counter)
                if change is None:
                    change = changes[counter] = Change(one.period.end, one.at)
                change.amount += amount
                change.at = max(change.at, one.at)
                change.latest = gauge.latest
    if entries:
        await queries.insert_entries(conn, entries)
    if changes:
        move = queries.move_counters if moving else queries.add_to_counters
        await _tell_users(
            conn, plans, {one.event.user_id: one.account for one in placed}, changes, await move(conn, changes)
        )


def _ends(placed: Iterable[_Placed]) -> dict[Counter, datetime]:
    return {
        (one.event.user_id, reading.meter, one.period.start): one.period.end
        for one in placed
        for reading in one.event.readings
        if one.account.erased_as is None
    }


async def _see(conn: Connection, readings: Iterable[tuple[_Placed, Reading]]) -> set[tuple[Counter, bytes | None]]:
    values = {
        ((one.event.user_id, reading.meter, one.period.start), reading.seen)
        for one, reading in readings
        if reading.seen is not None
    }
    return set(await queries.insert_seen_values(conn, values)) if values else set()


async def _tell_users(
    conn: Connection,
    plans: Plans,
    known: Mapping[str, Account],
    changes: Mapping[Counter, Change],
    used: Mapping[Counter, int],
) -> None:
    """What follows from new counters: credits are spent, thresholds told."""
    touched: dict[tuple[str, datetime], list[Counter]] = {}
    for counter in changes:
        touched.setdefault((counter[0], counter[2]), []).append(counter)
    standings: list[Standing] = []
    for (user_id, start), counters in touched.items():
        account = known[user_id]
        limits = account_rules.limits_of(plans, account)
        mine = {counter[1]: used[counter] for counter in counters if counter[1] in limits}
        if not mine:
            continue
        period = Period(start=start, end=changes[counters[0]].period_end)
        if account.has_grants:
            booked = {metric: changes[user_id, metric, start].amount for metric in mine}
            at = max(changes[counter].at for counter in counters)
            await spend_credits(conn, user_id=user_id, limits=limits, booked=booked, used=mine, period=period, at=at)
        standings.append(Standing(user_id=user_id, account=account, period=period, used=mine))
    await outbox.add(conn, *await thresholds_told(conn, plans, standings))


def _entry(one: _Placed, reading: Reading, amount: int) -> Entry:
    event = one.event
    return Entry(
        event.source,
        event.event_id,
        one.account.erased_as or event.user_id,
        reading.meter,
        amount,
        None if reading.aggregation == "count" else reading.value,
        one.period.start,
        event.at,
        event.cost_micro_usd if reading is event.readings[0] else 0,
        event.properties,
    )
