"""Peers of reservations, in SQL and asyncpg alone, for `bench.holds`: two that do the same durable work, two floors.

The peers do for their callers what a reservation has to: each waits for a verdict of its own, which a batch brings that
commits as one transaction, with one row per hold, named by its id, and conditional updates of the counters. They know
one kind of amount, no plans, overrides, features, grants, periods or deleted accounts; their holds expire nowhere and
are found by nothing but their id; who asks for more than fits is refused together with all other asks of that user in
the batch. `in_transaction` is how one writes it: claim the ids, count what is new, take back what has no room; a
repeated ask is found. `in_statement` is the least that PostgreSQL can be asked for: a repeated id undoes the whole
batch, and nobody is there to do it again.

The floors have no callers, no holds and no verdicts: a loop counts to 128 and sends the sum of each user, as an UPDATE
that is awaited before the next, as all these UPDATEs sent at once by the driver, or as one statement for all users.
"""

import asyncio
import itertools
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final, TypeAlias
from uuid import UUID

import asyncpg

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Counting: TypeAlias = "Callable[[Connection, Sequence[str]], Awaitable[None]]"

_TABLES: Final = """
    CREATE TABLE peer_counters (user_id text PRIMARY KEY, used bigint, held bigint, ceiling bigint)
        WITH (fillfactor = 70);
    CREATE TABLE peer_holds (
        id uuid PRIMARY KEY, user_id text NOT NULL, amount bigint NOT NULL,
        created_at timestamptz NOT NULL DEFAULT now()
    );
    """
_IN_STATEMENT: Final = """
    WITH asked AS (SELECT id, user_id FROM unnest((SELECT $1::uuid[]), $2::text[]) AS a(id, user_id)),
    taken AS (
        UPDATE peer_counters AS counter SET held = held + wanted.amount
        FROM (SELECT user_id, count(*) AS amount FROM asked GROUP BY user_id ORDER BY user_id) AS wanted
        WHERE counter.user_id = wanted.user_id AND used + held + wanted.amount <= ceiling
        RETURNING counter.user_id
    )
    INSERT INTO peer_holds (id, user_id, amount)
    SELECT id, user_id, 1 FROM asked WHERE user_id IN (SELECT user_id FROM taken)
    RETURNING id
    """
_CLAIM: Final = """
    INSERT INTO peer_holds (id, user_id, amount)
    SELECT id, user_id, 1 FROM unnest((SELECT $1::uuid[]), $2::text[]) AS a(id, user_id) ORDER BY id
    ON CONFLICT (id) DO NOTHING RETURNING id, user_id
    """
_TAKE: Final = """
    UPDATE peer_counters AS counter SET held = held + wanted.amount
    FROM (
        SELECT user_id, count(*) AS amount FROM unnest((SELECT $1::text[])) AS a(user_id)
        GROUP BY user_id ORDER BY user_id
    ) AS wanted
    WHERE counter.user_id = wanted.user_id AND used + held + wanted.amount <= ceiling
    RETURNING counter.user_id
    """

_COUNT: Final = "UPDATE peer_counters SET held = held + $2 WHERE user_id = $1 AND used + held + $2 <= ceiling"


async def make_tables(conn: Connection, users: Sequence[UUID]) -> None:
    await conn.execute(_TABLES)
    await conn.execute(
        "INSERT INTO peer_counters SELECT user_id, 0, 0, 1000000000 FROM unnest($1::text[]) AS named(user_id)",
        [str(user_id) for user_id in users],
    )
    # Not the empty table: as analyzed it is small for the planner until it is analyzed again, however it grows.
    await conn.execute("ANALYZE peer_counters")


async def in_statement(conn: Connection, ids: Sequence[UUID], users: Sequence[str]) -> AbstractSet[UUID]:
    """The ids that are held. Raises UniqueViolationError if one of them was before."""
    return {row["id"] for row in await conn.fetch(_IN_STATEMENT, ids, users)}


async def in_transaction(conn: Connection, ids: Sequence[UUID], users: Sequence[str]) -> AbstractSet[UUID]:
    """The ids that are held, now or before."""
    async with conn.transaction():
        claimed = await conn.fetch(_CLAIM, ids, users)
        taken = await conn.fetch(_TAKE, [row["user_id"] for row in claimed])
        with_room = {row["user_id"] for row in taken}
        refused = {row["id"] for row in claimed if row["user_id"] not in with_room}
        if refused:
            await conn.execute("DELETE FROM peer_holds WHERE id = ANY($1)", refused)
    return set(ids) - refused if refused else set(ids)


Holding: TypeAlias = "Callable[[Connection, Sequence[UUID], Sequence[str]], Awaitable[AbstractSet[UUID]]]"


class Direct:
    """Asks in line, and as many lanes as there are connections that take what is there, a batch at the most."""

    def __init__(self, conns: Sequence[Connection], hold: Holding, *, most: int) -> None:
        self._hold = hold
        self._idle = list(conns)
        self._lanes = len(conns)
        self._most = most
        self._line: deque[tuple[UUID, str, asyncio.Future[bool]]] = deque()
        self._under_way: set[asyncio.Task[None]] = set()

    def ask(self, hold_id: UUID, user_id: str) -> "asyncio.Future[bool]":
        """Whether it is held. Raises what the database says of the batch it is part of."""
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._line.append((hold_id, user_id, answer))
        # The first lane for whoever comes, another one for a batch that is as large as it can become.
        if self._idle and (len(self._idle) == self._lanes or len(self._line) >= self._most):
            lane = asyncio.create_task(self._serve(self._idle.pop()))
            self._under_way.add(lane)
            lane.add_done_callback(self._under_way.discard)
        return answer

    async def _serve(self, conn: Connection) -> None:
        while self._line:
            batch = [self._line.popleft() for _ in range(min(self._most, len(self._line)))]
            try:
                held = await self._hold(conn, [hold_id for hold_id, _, _ in batch], [user for _, user, _ in batch])
            except asyncpg.PostgresError as error:
                for _, _, answer in batch:
                    answer.set_exception(error)
            else:
                for hold_id, _, answer in batch:
                    answer.set_result(hold_id in held)
        self._idle.append(conn)


async def by_callers(
    reserve: Callable[[str], Awaitable[object]], users: Sequence[UUID], *, at_once: int, seconds: float
) -> float:
    """Grants a second to so many callers, each of whom asks again when it has its verdict."""
    turn, granted = itertools.cycle([str(user_id) for user_id in users]), 0
    started = time.perf_counter()

    async def ask() -> None:
        nonlocal granted
        while time.perf_counter() - started < seconds:
            await reserve(next(turn))
            granted += 1

    await asyncio.gather(*(ask() for _ in range(at_once)))
    return granted / (time.perf_counter() - started)


async def count_one_by_one(conn: Connection, asked: Sequence[str]) -> None:
    for user_id, amount in sorted(Counter(asked).items()):
        await conn.execute(_COUNT, user_id, amount)


async def count_by_user(conn: Connection, asked: Sequence[str]) -> None:
    await conn.executemany(_COUNT, sorted(Counter(asked).items()))


async def count_at_once(conn: Connection, asked: Sequence[str]) -> None:
    await conn.execute(
        """
        UPDATE peer_counters AS counter SET held = held + asked.amount
        FROM (
            SELECT user_id, count(*) AS amount FROM unnest($1::text[]) AS ask(user_id)
            GROUP BY user_id ORDER BY user_id
        ) AS asked
        WHERE counter.user_id = asked.user_id AND used + held + asked.amount <= ceiling
        """,
        asked,
    )


async def by_updates(
    conns: Sequence[Connection], users: Sequence[UUID], count: Counting, *, batch: int, seconds: float
) -> float:
    """What is counted a second, in transactions of so many each."""
    turn, counted = itertools.cycle(users), 0
    started = time.perf_counter()

    async def work(conn: Connection) -> None:
        nonlocal counted
        while time.perf_counter() - started < seconds:
            asked = sorted(str(next(turn)) for _ in range(batch))
            async with conn.transaction():
                await count(conn, asked)
            counted += batch

    await asyncio.gather(*(work(conn) for conn in conns))
    return counted / (time.perf_counter() - started)
