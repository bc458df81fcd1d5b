"""The emulator's memory: one SQLite file, written through before any answer leaves, safe under `kill -9`."""

import sqlite3
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import orjson

from devkit.stripe.errors import Json

SCHEMA = """
CREATE TABLE IF NOT EXISTS objects (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    owner TEXT,
    clock TEXT NOT NULL DEFAULT '',
    created INTEGER NOT NULL,
    due_at INTEGER,
    is_deleted INTEGER NOT NULL DEFAULT 0,
    body TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS objects_by_kind ON objects (kind, seq);
CREATE INDEX IF NOT EXISTS objects_by_owner ON objects (owner, kind, seq) WHERE owner IS NOT NULL;
CREATE INDEX IF NOT EXISTS objects_by_due ON objects (clock, due_at) WHERE due_at IS NOT NULL;
CREATE TABLE IF NOT EXISTS documents (name TEXT PRIMARY KEY, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS idempotency (
    key TEXT PRIMARY KEY,
    fingerprint TEXT NOT NULL,
    status INTEGER NOT NULL,
    body BLOB NOT NULL,
    created_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS calls (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    event TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    next_at REAL NOT NULL,
    state TEXT NOT NULL DEFAULT 'pending',
    last_status INTEGER,
    last_error TEXT
);
CREATE INDEX IF NOT EXISTS deliveries_pending ON deliveries (next_at) WHERE state = 'pending';
CREATE INDEX IF NOT EXISTS deliveries_by_event ON deliveries (event);
CREATE TABLE IF NOT EXISTS faults (id INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS outcomes (
    id INTEGER PRIMARY KEY AUTOINCREMENT, customer TEXT NOT NULL, outcome TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS usage (
    identifier TEXT PRIMARY KEY,
    meter TEXT NOT NULL,
    customer TEXT NOT NULL,
    at INTEGER NOT NULL,
    value TEXT NOT NULL,
    received_at INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS usage_by_customer ON usage (meter, customer, at);
"""
EVERYTHING = ("objects", "documents", "idempotency", "calls", "deliveries", "faults", "outcomes", "usage")


class Store:
    """Documents by id, with the few columns that are searched beside them. One thread, one connection."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.sql = sqlite3.connect(path, isolation_level=None)
        self.sql.row_factory = sqlite3.Row
        # WAL with synchronous=NORMAL keeps every commit across a killed process; only a lost machine could cost one.
        self.sql.execute("PRAGMA journal_mode = WAL")
        self.sql.execute("PRAGMA synchronous = NORMAL")
        self.sql.executescript(SCHEMA)

    def close(self) -> None:
        self.sql.close()

    @contextmanager
    def transaction(self) -> Generator[None]:
        """Commit what happens inside, or nothing of it. Nested use joins the outer one."""
        if self.sql.in_transaction:
            yield
            return
        self.sql.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self.sql.execute("ROLLBACK")
            raise
        self.sql.execute("COMMIT")

    def put(self, body: Json, *, due_at: int | None = None) -> None:
        """Insert or replace an object; `due_at` is when its own clock has work for it (Unix seconds)."""
        self.sql.execute(
            """
            INSERT INTO objects (id, kind, owner, clock, created, due_at, body) VALUES (?, ?, ?, ?, ?, ?, ?)
            ON CONFLICT (id) DO UPDATE
            SET owner = excluded.owner, clock = excluded.clock, due_at = excluded.due_at, body = excluded.body
            """,
            (
                body["id"],
                body["object"],
                body.get("_owner") or body.get("customer"),
                body.get("test_clock") or body.get("_clock") or "",
                body.get("_created") or body.get("created") or 0,
                due_at,
                orjson.dumps(body).decode(),
            ),
        )

    def find(self, object_id: str, kind: str | None = None) -> Json | None:
        """The object, deleted ones included (they carry `deleted: true`)."""
        row = self.sql.execute("SELECT kind, body FROM objects WHERE id = ?", (object_id,)).fetchone()
        if row is None or (kind is not None and row["kind"] != kind):
            return None
        return cast("Json", orjson.loads(row["body"]))

    def mark_deleted(self, object_id: str, stub: Json) -> None:
        self.sql.execute(
            "UPDATE objects SET is_deleted = 1, due_at = NULL, body = ? WHERE id = ?",
            (orjson.dumps(stub).decode(), object_id),
        )

    def position(self, object_id: str, kind: str) -> int | None:
        """Where the object stands in the order of creation, for list cursors."""
        row = self.sql.execute("SELECT seq FROM objects WHERE id = ? AND kind = ?", (object_id, kind)).fetchone()
        return None if row is None else cast("int", row["seq"])

    def newest_first(self, kind: str, *, owner: str | None = None, below: int | None = None) -> Iterator[Json]:
        """Living objects of a kind, newest first, from below a position."""
        statement = """
            SELECT body FROM objects
            WHERE kind = ? AND is_deleted = 0 AND seq < ? AND (? IS NULL OR owner = ?) ORDER BY seq DESC
        """
        if owner is not None:  # its own statement, so that SQLite may use the index on the owner
            statement = """
                SELECT body FROM objects
                WHERE kind = ? AND is_deleted = 0 AND seq < ? AND owner = ? AND owner = ? ORDER BY seq DESC
            """
        for row in self.sql.execute(statement, (kind, 2**62 if below is None else below, owner, owner)):
            yield cast("Json", orjson.loads(row["body"]))

    def oldest_first(self, kind: str, *, owner: str | None = None, above: int = 0) -> Iterator[Json]:
        rows = self.sql.execute(
            """
            SELECT body FROM objects
            WHERE kind = ? AND is_deleted = 0 AND seq > ? AND (? IS NULL OR owner = ?) ORDER BY seq
            """,
            (kind, above, owner, owner),
        )
        for row in rows:
            yield cast("Json", orjson.loads(row["body"]))

    def next_due(self, clock: str, until: int) -> tuple[str, int] | None:
        """Id and time of the earliest object with work due on this clock ('' is the global one)."""
        row = self.sql.execute(
            "SELECT id, due_at FROM objects WHERE clock = ? AND due_at <= ? ORDER BY due_at, seq LIMIT 1",
            (clock, until),
        ).fetchone()
        return None if row is None else (cast("str", row["id"]), cast("int", row["due_at"]))

    def document(self, name: str, default: Any = None) -> Any:
        row = self.sql.execute("SELECT body FROM documents WHERE name = ?", (name,)).fetchone()
        return default if row is None else orjson.loads(row["body"])

    def put_document(self, name: str, body: Any) -> None:
        self.sql.execute(
            "INSERT INTO documents (name, body) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET body = excluded.body",
            (name, orjson.dumps(body).decode()),
        )

    def clear(self) -> None:
        """Forget everything."""
        with self.transaction():
            for table in EVERYTHING:
                self.sql.execute(f"DELETE FROM {table}")  # noqa: S608 - the names are the constants above
