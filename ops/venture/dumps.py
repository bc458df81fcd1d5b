"""PostgreSQL's own tools for backup and restore, and what a restored database has to tell again."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import psycopg
from psycopg import sql

from libs.common.clock import system_clock
from libs.common.events import CATALOGUE
from ops.engines.definitions import SERVICES
from ops.engines.packages import find_postgres
from ops.failure import Failure

RESTORED: Final = "venture_restored"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """`url` is the superuser's. With `through` the tools run where that leads, on the server's local socket."""

    url: str
    through: Sequence[str] = ()

    @property
    def database(self) -> str:
        return urlsplit(self.url).path.lstrip("/")

    def dump(self, path: Path) -> None:
        with path.open("wb") as file:
            path.chmod(0o600)
            self._run("pg_dump", "--format=custom", self.database, stdout=file.fileno())

    def load(self, path: Path) -> None:
        """Fill a new database beside the one in use; nobody can connect to it by mistake while it fills."""
        self.throw_away()
        with self._connect("postgres") as conn:
            conn.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(RESTORED)))
            # As the first migration grants it: a dump of one database does not say it of the database itself.
            conn.execute(sql.SQL("GRANT CREATE ON DATABASE {} TO venture_owner").format(sql.Identifier(RESTORED)))
        with path.open("rb") as file:
            self._run("pg_restore", "--exit-on-error", f"--dbname={RESTORED}", stdin=file.fileno())

    def throw_away(self) -> None:
        with self._connect("postgres") as conn:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(RESTORED)))

    def send_again(self, queues: Sequence[str]) -> dict[str, int]:
        """Mark as unsent what was sent and what a consumer's inbox does not have; how many, by queue."""
        again: dict[str, int] = {}
        with self._connect(RESTORED) as conn:
            for consumer in SERVICES:
                for event_type in CATALOGUE:
                    if (name := f"{consumer}.{event_type}") in queues:
                        again[name] = self._send_one_again(conn, consumer, event_type)
        return {name: count for name, count in again.items() if count}

    def _send_one_again(self, conn: psycopg.Connection, consumer: str, event_type: str) -> int:
        owner = event_type.partition(".")[0]
        statement = sql.SQL(
            """
            UPDATE {outbox} AS o SET sent_at = NULL, claimed_until = '-infinity'
            WHERE o.type = %s AND NOT EXISTS (SELECT FROM {inbox} AS i WHERE i.event_id = o.id)
            """
        ).format(outbox=sql.Identifier(owner, "outbox"), inbox=sql.Identifier(consumer, "inbox"))
        return conn.execute(statement, (event_type,)).rowcount

    def put_in_place(self) -> str:
        """Swap names in one transaction, once nobody is connected; return what the old database is called now."""
        old = f"{self.database}_before_{system_clock():%Y%m%d_%H%M%S}"
        now, kept, new = (sql.Identifier(name) for name in (self.database, old, RESTORED))
        with self._connect("postgres") as conn:
            conn.execute(sql.SQL("ALTER DATABASE {} WITH ALLOW_CONNECTIONS false").format(now))
            conn.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = %s", (self.database,)
            )
            with conn.transaction():
                conn.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(now, kept))
                conn.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(new, now))
        return old

    def _connect(self, database: str) -> psycopg.Connection:
        return psycopg.connect(self.url, dbname=database, autocommit=True)

    def _run(self, tool: str, *arguments: str, stdin: int | None = None, stdout: int | None = None) -> None:
        if self.through:
            command, environment = (*self.through, tool, "--username=postgres", *arguments), dict(os.environ)
        else:
            command, environment = (_find(tool), *arguments), {**os.environ, **self._libpq()}
        done = subprocess.run(command, check=False, env=environment, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE)
        if done.returncode != 0:
            raise Failure(f"{tool} failed: {done.stderr.decode(errors='replace').strip()[:2000]}")

    def _libpq(self) -> dict[str, str]:
        """The connection as libpq's tools read it: a password on a command line could be seen by anybody."""
        parts = urlsplit(self.url)
        return {
            "PGHOST": parts.hostname or "",
            "PGPORT": str(parts.port or 5432),
            "PGUSER": unquote(parts.username or ""),
            "PGPASSWORD": unquote(parts.password or ""),
        }


def _find(tool: str) -> str:
    """Beside the server of this machine, which it then fits; else whichever is installed."""
    beside = find_postgres()
    return str(beside.with_name(tool)) if beside else shutil.which(tool) or tool
