"""The letters, newest last, at most so many; kept in one SQLite file."""

import secrets
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import orjson

from devkit.clock import wall_moment

SCHEMA = """
CREATE TABLE IF NOT EXISTS letters (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    sender TEXT NOT NULL,
    recipients TEXT NOT NULL,
    is_read INTEGER NOT NULL DEFAULT 0,
    line TEXT NOT NULL,
    words TEXT NOT NULL,
    raw BLOB NOT NULL
);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """A message as it came in: the envelope and the bytes."""

    id: str
    created_at: datetime
    sender: str
    recipients: tuple[str, ...]
    is_read: bool
    raw: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What lists and searches need of a letter: its line as the API shows it, and its words in lower case."""

    id: str
    is_read: bool
    line: dict[str, Any]
    words: str


class Letters:
    """Everything received, bounded: the oldest goes when one too many arrives."""

    def __init__(self, path: Path, *, most: int = 1_000) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._most = most
        self._sql = sqlite3.connect(path, isolation_level=None)
        self._sql.row_factory = sqlite3.Row
        self._sql.execute("PRAGMA journal_mode = WAL")
        self._sql.execute("PRAGMA synchronous = NORMAL")
        self._sql.executescript(SCHEMA)

    def close(self) -> None:
        self._sql.close()

    def add(self, letter: Letter, *, line: dict[str, Any], words: str) -> None:
        """Keep a letter with its line and words, so that no list has to parse it again."""
        self._sql.execute("BEGIN IMMEDIATE")
        self._sql.execute(
            "INSERT INTO letters (id, created_at, sender, recipients, line, words, raw) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                letter.id,
                letter.created_at.isoformat(),
                letter.sender,
                "\n".join(letter.recipients),
                orjson.dumps(line).decode(),
                words,
                letter.raw,
            ),
        )
        self._sql.execute(
            "DELETE FROM letters WHERE seq <= (SELECT seq FROM letters ORDER BY seq DESC LIMIT 1 OFFSET ?)",
            (self._most,),
        )
        self._sql.execute("COMMIT")

    def headings(self) -> list[Heading]:
        """Newest first."""
        rows = self._sql.execute("SELECT id, is_read, line, words FROM letters ORDER BY seq DESC").fetchall()
        return [
            Heading(
                id=row["id"],
                is_read=bool(row["is_read"]),
                line=cast("dict[str, Any]", orjson.loads(row["line"])) | {"Read": bool(row["is_read"])},
                words=row["words"],
            )
            for row in rows
        ]

    def find(self, letter_id: str) -> Letter | None:
        """The letter; `latest` names the newest."""
        if letter_id == "latest":
            row = self._sql.execute("SELECT * FROM letters ORDER BY seq DESC LIMIT 1").fetchone()
        else:
            row = self._sql.execute("SELECT * FROM letters WHERE id = ?", (letter_id,)).fetchone()
        return None if row is None else _letter(row)

    def mark(self, letter_ids: Sequence[str], *, is_read: bool) -> None:
        self._sql.executemany("UPDATE letters SET is_read = ? WHERE id = ?", [(is_read, one) for one in letter_ids])

    def remove(self, letter_ids: Sequence[str]) -> None:
        self._sql.executemany("DELETE FROM letters WHERE id = ?", [(one,) for one in letter_ids])

    def clear(self) -> None:
        self._sql.execute("DELETE FROM letters")


def received(*, sender: str, recipients: Sequence[str], raw: bytes) -> Letter:
    """A letter that has just come in."""
    return Letter(
        id=secrets.token_urlsafe(16),
        created_at=wall_moment(),
        sender=sender,
        recipients=tuple(recipients),
        is_read=False,
        raw=raw,
    )


def _letter(row: sqlite3.Row) -> Letter:
    return Letter(
        id=row["id"],
        created_at=datetime.fromisoformat(row["created_at"]),
        sender=row["sender"],
        recipients=tuple(row["recipients"].split("\n")),
        is_read=bool(row["is_read"]),
        raw=row["raw"],
    )
