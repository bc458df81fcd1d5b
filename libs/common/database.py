"""PostgreSQL: one pool per process, one transaction per unit of work, and transactions that run *as the user*.

Guards: SQL is a literal (parameters carry every value), a transaction that added outbox rows wakes the relay when it
has committed, and what the network or the server did to us surfaces as `DatabaseUnavailable`, never as a bug.
"""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Final, LiteralString, Self, cast
from uuid import UUID

import asyncpg
import orjson
import structlog

from libs.common.errors import Invalid, Unavailable

log = structlog.get_logger(__name__)

Record = asyncpg.Record

# The bound that DESIGN promises during faults is 5 s an answer: acquiring plus one slow statement stays below it.
ACQUIRE_TIMEOUT_S: Final = 2.0
STATEMENT_TIMEOUT_S: Final = 4.0


class DatabaseUnavailable(Unavailable):
    """PostgreSQL is away, full, overloaded or gave our transaction up; the same work may succeed later.

    Where it was raised by COMMIT the outcome is unknown: every write path is therefore safe to repeat by its key.
    """

    code = "database_unavailable"


# What says nothing about our statement: the server or the wire failed it, or it lost a race it may win next time.
_INFRASTRUCTURE: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the protocol's state machine, after its connection broke under it
    asyncpg.InsufficientResourcesError,  # disk full, too many connections, out of memory
    asyncpg.OperatorInterventionError,  # shutdown, crash of a neighbour, statement timeout
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.LockNotAvailableError,
    asyncpg.ObjectNotInPrerequisiteStateError,  # the database takes no connections: a restored one is put in its place
    asyncpg.InvalidCatalogNameError,  # whoever connects in the moment of that exchange is told that there is none
    asyncpg.InvalidAuthorizationSpecificationError,
    ConnectionError,
    TimeoutError,
    OSError,
)


class Connection:
    """One checked-out connection inside one transaction. Statements are literals; values travel as `$n`."""

    __slots__ = ("_raw", "wrote_outbox")

    def __init__(self, raw: "asyncpg.pool.PoolConnectionProxy[Record]") -> None:
        self._raw = raw
        self.wrote_outbox = False

    async def fetch(self, sql: LiteralString, *args: Any) -> list[Record]:
        return await self._raw.fetch(sql, *args)

    async def fetchrow(self, sql: LiteralString, *args: Any) -> Record | None:
        return await self._raw.fetchrow(sql, *args)

    async def fetchval(self, sql: LiteralString, *args: Any) -> Any:
        return await self._raw.fetchval(sql, *args)

    async def execute(self, sql: LiteralString, *args: Any) -> int:
        """Run a statement; return how many rows it touched."""
        tag = await self._raw.execute(sql, *args)
        count = tag.rpartition(" ")[2]
        return int(count) if count.isdigit() else 0

    @asynccontextmanager
    async def savepoint(self) -> AsyncGenerator[Self, None]:
        """Undo what happens inside, and only that, when it raises."""
        async with self._raw.transaction():
            yield self


class _Once:
    """Stands before a connection that is not in a transaction: a second statement would not undo the first."""

    __slots__ = ("_raw",)

    def __init__(self, raw: "asyncpg.pool.PoolConnectionProxy[Record]") -> None:
        self._raw: asyncpg.pool.PoolConnectionProxy[Record] | None = raw

    def __getattr__(self, name: str) -> Any:
        raw, self._raw = self._raw, None
        if raw is None:
            raise RuntimeError("one statement commits itself; several need a transaction")
        return getattr(raw, name)


class Database:
    """The pool of one process. `outbox_written` is set whenever a transaction that added outbox rows has committed."""

    def __init__(self, pool: "asyncpg.Pool[Record]") -> None:
        self._pool = pool
        self.outbox_written = asyncio.Event()

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[Connection, None]:
        """One transaction as this service's own role. Commits on leaving, rolls back when the body raises."""
        async with self._begin() as conn:
            yield conn

    @asynccontextmanager
    async def statement(self) -> AsyncGenerator[Connection, None]:
        """One statement that commits itself: two round trips less than a transaction around it.

        Raises RuntimeError at a second one.
        """
        async with self._checked_out() as raw:
            conn = Connection(cast("asyncpg.pool.PoolConnectionProxy[Record]", _Once(raw)))
            yield conn
        if conn.wrote_outbox:
            self.outbox_written.set()

    @asynccontextmanager
    async def transaction_as(self, claims: Mapping[str, Any]) -> AsyncGenerator[Connection, None]:
        """One transaction as the signed-in user, so that row-level security guards every statement in it.

        `claims` are the access token's: `sub` and `role` at least. Raises RuntimeError if the role did not take:
        a silent no-op here would mean queries that see everybody's rows.
        """
        role = "authenticated" if claims.get("role") == "authenticated" else "anon"
        async with self._begin() as conn:
            # set_config(…, true) is SET LOCAL with parameters. One round trip for claims, role and what became of it:
            # the columns of a row are computed in their order.
            row = await conn.fetchrow(
                """
                SELECT set_config('request.jwt.claims', $1, true), set_config('role', $2, true), current_user AS role
                """,
                orjson.dumps(dict(claims)).decode(),
                role,
            )
            if row is None or row["role"] != role:
                raise RuntimeError("the transaction does not run as the user")
            yield conn

    @asynccontextmanager
    async def _begin(self) -> AsyncGenerator[Connection, None]:
        async with self._checked_out() as raw:
            conn = Connection(raw)
            async with raw.transaction():
                yield conn
        if conn.wrote_outbox:
            self.outbox_written.set()

    @asynccontextmanager
    async def _checked_out(self) -> AsyncGenerator["asyncpg.pool.PoolConnectionProxy[Record]", None]:
        try:
            raw = await self._pool.acquire(timeout=ACQUIRE_TIMEOUT_S)
        except _INFRASTRUCTURE as error:
            raise DatabaseUnavailable("The database cannot be reached.") from error
        try:
            yield raw
        except (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError) as error:
            # PostgreSQL text cannot hold NUL; said once here instead of at every input.
            raise Invalid("Text must not contain NUL characters.") from error
        except asyncpg.InsufficientPrivilegeError:
            # A grant or a policy refused: somebody reached for what is not theirs, or a route forgot whom it acts for.
            log.error("database_refused_access")  # noqa: TRY400 - whoever catches it tells where
            raise
        except _INFRASTRUCTURE as error:
            if isinstance(error, ValueError):  # asyncpg's "this value does not fit that parameter": our bug
                raise
            # Nobody resets connections here, so one that failed must not go back: it may be broken without knowing.
            with suppress(asyncpg.InterfaceError):  # the driver saw it break, too, and has taken it back already
                raw.terminate()
            raise DatabaseUnavailable("The database did not complete the work.") from error
        finally:
            await self._release(raw)

    async def _release(self, raw: "asyncpg.pool.PoolConnectionProxy[Record]") -> None:
        try:
            await self._pool.release(raw, timeout=1.0)
        except _INFRASTRUCTURE as error:
            log.warning("database_connection_dropped", error=type(error).__name__)

    async def ping(self) -> None:
        """Raises DatabaseUnavailable unless a statement completes."""
        async with self.transaction() as conn:
            await conn.fetchval("SELECT 1")

    async def wait_until_up(self) -> None:
        """Return once a statement completes; probe with back-off up to 1 s until then."""
        delay_s = 0.05
        while True:
            try:
                await self.ping()
            except DatabaseUnavailable:
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, 1.0)
            else:
                return


def _plain(value: Any) -> str:
    if isinstance(value, UUID):  # the driver's own kind, which orjson does not know
        return str(value)
    raise TypeError(f"{type(value).__name__} has no form in JSON")


async def prepare(connection: "asyncpg.Connection[Record]") -> None:
    """Make json and jsonb columns arrive as Python values and leave from them."""
    for name in ("json", "jsonb"):
        await connection.set_type_codec(
            name,
            schema="pg_catalog",
            encoder=lambda value: orjson.dumps(value, default=_plain).decode(),
            decoder=orjson.loads,
        )


async def _nothing_to_reset(_connection: "asyncpg.Connection[Record]") -> None:
    return


@asynccontextmanager
async def connect(
    url: str, *, application_name: str, min_size: int = 2, max_size: int = 16
) -> AsyncGenerator[Database, None]:
    """Open the pool; close it on leaving. Waits up to 30 s for a server that is still starting."""
    pool = await _open_pool(url, application_name=application_name, min_size=min_size, max_size=max_size)
    try:
        yield Database(pool)
    finally:
        try:
            async with asyncio.timeout(5):
                await pool.close()
        except TimeoutError:
            pool.terminate()


async def _open_pool(url: str, *, application_name: str, min_size: int, max_size: int) -> "asyncpg.Pool[Record]":
    deadline = asyncio.get_running_loop().time() + 30
    while True:
        try:
            return await asyncpg.create_pool(
                url,
                min_size=min_size,
                max_size=max_size,
                command_timeout=STATEMENT_TIMEOUT_S,
                timeout=ACQUIRE_TIMEOUT_S,
                init=prepare,
                # A checkout is one transaction with SET LOCAL at most: nothing to reset, and one round trip less.
                reset=_nothing_to_reset,
                server_settings={
                    "application_name": application_name,
                    "timezone": "UTC",
                    "idle_in_transaction_session_timeout": "30000",
                    "lock_timeout": "3000",
                    # Above our own bound on a statement: this one holds when the process that asked is gone or stuck.
                    "statement_timeout": "10000",
                    "jit": "off",
                    # Pages are in memory or on a solid disk: the default, 4, has small tables scanned whole.
                    "random_page_cost": "1.1",
                },
            )
        except _INFRASTRUCTURE as error:
            if asyncio.get_running_loop().time() > deadline:
                raise DatabaseUnavailable("The database cannot be reached.") from error
            await asyncio.sleep(0.5)
