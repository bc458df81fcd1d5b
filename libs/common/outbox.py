"""An event is a row first and a message second: rows are added beside the state change, the relay sends them.

Invariants: a row is marked sent only after the broker has confirmed *and routed* it; a row has no terminal failure;
there is no cursor over ids (a slow transaction's row would be skipped for ever), only `sent_at IS NULL`.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, LiteralString, Protocol
from uuid import UUID

import orjson
import structlog
from prometheus_client import Counter

from libs.common.clock import iso_millis
from libs.common.database import Connection, Database, DatabaseUnavailable, Record
from libs.common.events import CATALOGUE, EncodedEvent, Event
from libs.common.telemetry import EVENT_SUMS, EVENTS, current_traceparent
from libs.common.waiting import woken

log = structlog.get_logger(__name__)

BATCH_SIZE: Final = 500
"""Statements and round trips are the same for any number. By bench.event_peers, in turns: with 500 PostgreSQL takes
0.047 ms of processor an event, with 200 it took 0.052 to 0.054."""
AHEAD: Final = 1
"""Full batches whose confirms may be missing while the next one is claimed. In the same rounds: 5,150 events a second
end to end with one, 4,390 with none. Of batches of 200, three were no better than one: 4,210 against 4,130."""
POLL_INTERVAL_S: Final = 0.25
CLAIM_S: Final = 10
"""How long a claimed row stays with its relay: the publisher's confirm timeout and some air. A killed relay delays
its batch by this much; another relay may then send a row twice, which the inbox makes harmless."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxRow:
    id: UUID
    type: str
    subject: str
    data: Any
    traceparent: str | None
    created_at: datetime
    attempts: int

    def body(self, source: str) -> bytes:
        return orjson.dumps(
            {
                "specversion": "1.0",
                "id": str(self.id),
                "type": self.type,
                "source": source,
                "subject": self.subject,
                "time": iso_millis(self.created_at),
                "datacontenttype": "application/json",
                "traceparent": self.traceparent,
                "data": self.data,
            }
        )

    def encode(self, source: str) -> EncodedEvent:
        return EncodedEvent(str(self.id), self.type, self.body(source), self.traceparent)


class Publisher(Protocol):
    """Sends events in their order; says of each None once the broker has confirmed and routed it, else its error."""

    async def publish_events(self, events: Sequence[EncodedEvent]) -> Sequence[Exception | None]: ...


async def add(conn: Connection, *events: Event) -> None:
    """Record events in the caller's transaction; they are sent after it commits, or never if it does not."""
    if not events:
        return
    traceparent = current_traceparent()
    await add_traced(conn, [(event, traceparent) for event in events])


async def add_traced(conn: Connection, events: Sequence[tuple[Event, str | None]]) -> None:
    """The same for events of several traces at once, each with its own traceparent."""
    await conn.execute(_INSERT, *_columns(events))
    conn.wrote_outbox = True


async def add_traced_with(
    conn: Connection, events: Sequence[tuple[Event, str | None]], statement: LiteralString, *args: Any
) -> list[Record]:
    """The same together with another statement, in one that needs no transaction around it; return the other's rows.

    The parameters of the other are numbered from $6.
    """
    rows = await conn.fetch(f"WITH added AS ({_INSERT}) {statement}", *_columns(events), *args)
    conn.wrote_outbox = True
    return rows


async def add_traced_of(
    conn: Connection,
    events: Sequence[tuple[Event, str | None]],
    statement: LiteralString,
    told: LiteralString,
    *args: Any,
) -> list[Record]:
    """Carry out `statement` and add the events of what it did, in one that needs no transaction around it.

    `statement` is WITH queries, the last of which is named `done` and returns the `place` of each event of what was
    done, counted from 1. Returns the rows of `told`, a query on `done`. The parameters are numbered from $6.
    """
    rows = await conn.fetch(f"{statement}, added AS ({_INSERT} {_IF_DONE}) {told}", *_columns(events), *args)
    conn.wrote_outbox = True
    return rows


async def add_of_rows(
    conn: Connection, event: type[Event], statement: LiteralString, told: LiteralString, *args: Any
) -> list[Record]:
    """The same where the statement itself finds out whom it does something to: each row of `done` becomes an event.

    `done` returns `subject`, `data` and `traceparent` of each; all are of one type. The parameters are numbered from
    $2.
    """
    rows = await conn.fetch(f"{statement}, added AS ({_INSERT_DONE}) {told}", event.type, *args)
    conn.wrote_outbox = conn.wrote_outbox or bool(rows)
    return rows


_INSERT: Final = """
    INSERT INTO outbox (id, type, subject, data, traceparent)
    SELECT id, type, subject, data, traceparent
    FROM unnest($1::uuid[], $2::text[], $3::text[], $4::jsonb[], $5::text[])
        WITH ORDINALITY AS event(id, type, subject, data, traceparent, place)
    """
_IF_DONE: Final = "WHERE place IN (SELECT place FROM done)"
# A UUIDv7 as `new_id` makes it: the time in its first 48 bits, and version 7 in place of 4.
_INSERT_DONE: Final = """
    INSERT INTO outbox (id, type, subject, data, traceparent)
    SELECT encode(set_bit(set_bit(overlay(uuid_send(gen_random_uuid()) PLACING substring(
            int8send(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint) FROM 3
        ) FROM 1 FOR 6), 52, 1), 53, 1), 'hex')::uuid, $1, subject, data, traceparent
    FROM done
    """


def _columns(events: Sequence[tuple[Event, str | None]]) -> Sequence[list[Any]]:
    return (
        [event.event_id for event, _ in events],
        [event.type for event, _ in events],
        [event.subject for event, _ in events],
        [event.model_dump(mode="json") for event, _ in events],
        [traceparent for _, traceparent in events],
    )


async def claim_unsent(conn: Connection, *, limit: int) -> list[OutboxRow]:
    rows = await conn.fetch(
        """
        UPDATE outbox SET claimed_until = now() + make_interval(secs => $2), attempts = attempts + 1
        WHERE id IN (
            SELECT id FROM outbox
            WHERE sent_at IS NULL AND claimed_until <= now()
            ORDER BY id
            LIMIT $1
            -- SKIP LOCKED: relays of several replicas share the backlog instead of queueing for the same rows.
            FOR UPDATE SKIP LOCKED
        )
        RETURNING id, type, subject, data, traceparent, created_at, attempts
        """,
        limit,
        CLAIM_S,
    )
    return sorted((OutboxRow(**dict(row)) for row in rows), key=lambda row: row.id)


async def mark_sent(conn: Connection, ids: list[UUID]) -> None:
    await conn.execute("UPDATE outbox SET sent_at = now(), last_error = NULL WHERE id = ANY($1)", ids)


async def mark_failed(conn: Connection, failures: dict[UUID, str]) -> None:
    """Give the rows back with a growing pause, capped at 30 s: there is no last attempt."""
    await conn.execute(
        """
        UPDATE outbox
        SET last_error = f.error,
            claimed_until = now() + make_interval(secs => least(30, 0.25 * 2 ^ least(attempts, 7)))
        FROM unnest($1::uuid[], $2::text[]) AS f(id, error) WHERE outbox.id = f.id
        """,
        list(failures),
        list(failures.values()),
    )


async def oldest_unsent_age_s(conn: Connection) -> float:
    """Age in seconds of the oldest row still to be sent, 0 if there is none: the relay's alarm."""
    age = await conn.fetchval("SELECT extract(epoch FROM now() - min(created_at)) FROM outbox WHERE sent_at IS NULL")
    return float(age or 0)


async def delete_sent(conn: Connection, *, older_than_s: float, limit: int) -> int:
    return await conn.execute(
        """
        DELETE FROM outbox WHERE id IN (
            SELECT id FROM outbox WHERE sent_at < now() - make_interval(secs => $1) LIMIT $2
        )
        """,
        older_than_s,
        limit,
    )


class Relay:
    """Moves unsent rows to the broker for ever: woken by commits of this process, polling for everybody else's."""

    def __init__(self, database: Database, publisher: Publisher, *, source: str) -> None:
        self._database = database
        self._publisher = publisher
        self._source = source

    async def run(self) -> None:
        under_way: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._database.outbox_written.clear()
                try:
                    rows = await self._claim()
                    if rows:
                        under_way.add(asyncio.create_task(self._deliver(rows)))
                    # Only a backlog is claimed ahead of its confirms: else what is added meanwhile makes one batch.
                    is_behind = len(rows) == BATCH_SIZE
                    await _leave(AHEAD if is_behind else 0, of=under_way)
                except DatabaseUnavailable:
                    await self._database.wait_until_up()
                    continue
                if not is_behind:
                    await woken(self._database.outbox_written, within_s=POLL_INTERVAL_S)
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    async def run_once(self) -> int:
        """Send one batch; return how many rows were claimed. Rows that fail are given back, the others are marked."""
        rows = await self._claim()
        if rows:
            await self._deliver(rows)
        return len(rows)

    async def _claim(self) -> list[OutboxRow]:
        async with self._database.statement() as conn:
            return await claim_unsent(conn, limit=BATCH_SIZE)

    async def _deliver(self, rows: Sequence[OutboxRow]) -> None:
        outcomes = await self._publish(rows)
        sent = [row.id for row, error in zip(rows, outcomes, strict=True) if error is None]
        failures = {row.id: error for row, error in zip(rows, outcomes, strict=True) if error is not None}
        if sent:
            async with self._database.statement() as conn:
                await mark_sent(conn, sent)
        if failures:
            async with self._database.statement() as conn:
                await mark_failed(conn, failures)
            log.warning("outbox_not_sent", count=len(failures), first_error=next(iter(failures.values())))

    async def _publish(self, rows: Sequence[OutboxRow]) -> Sequence[str | None]:
        """For each row None once it is where it should be, or the reason why it is not."""
        try:
            outcomes = await self._publisher.publish_events([row.encode(self._source) for row in rows])
        except Exception as error:  # noqa: BLE001 - an edge: whatever happened, the rows keep the reason and stay
            if len(rows) == 1:
                return [_describe(error)]
            return [(await self._publish([row]))[0] for row in rows]  # one that cannot be written holds up no other
        for row, error in zip(rows, outcomes, strict=True):
            if error is None:
                _count(row)
        return [None if error is None else _describe(error) for error in outcomes]


async def _leave(at_most: int, *, of: set[asyncio.Task[None]]) -> None:
    """Wait until no more of these are under way, and take out those that are done. Raises what one of them raised."""
    while len(of) > at_most:
        done, _ = await asyncio.wait(of, return_when=asyncio.FIRST_COMPLETED)
        of -= done
        for task in done:
            task.result()


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


def _count(row: OutboxRow) -> None:
    """Business facts become metrics where they leave, whichever service they are of."""
    _counter(row.type, row.data.get("outcome", "")).inc()
    for name in CATALOGUE[row.type].measures if row.type in CATALOGUE else ():
        EVENT_SUMS.labels(row.type, name).inc(max(0, row.data.get(name) or 0))


@cache
def _counter(event_type: str, outcome: str) -> Counter:
    """Looked up once: finding a metric by its labels costs more than counting in it."""
    return EVENTS.labels(event_type, outcome)


class Sweeper:
    """Deletes rows long sent, in small bites, so that the table stays its backlog and three days of history."""

    def __init__(self, database: Database, *, keep_s: float = 3 * 86_400, interval_s: float = 300) -> None:
        self._database = database
        self._keep_s = keep_s
        self._interval_s = interval_s

    async def run(self) -> None:
        while True:
            try:
                async with self._database.transaction() as conn:
                    deleted = await delete_sent(conn, older_than_s=self._keep_s, limit=5_000)
            except DatabaseUnavailable:
                await self._database.wait_until_up()
                continue
            if deleted < 5_000:  # noqa: PLR2004 - the bite above
                await asyncio.sleep(self._interval_s)
