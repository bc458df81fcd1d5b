"""The database as `venture_operator`: looking, and acting with the audit row in the same transaction."""

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import psycopg
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from libs.common.ids import new_id
from ops.failure import Failure
from ops.venture.access import DATABASE_URL
from ops.venture.desk import Desk, plain

Connection = psycopg.Connection[dict[str, Any]]
_CONNECT_LIMIT_S: Final = 5


@dataclass(slots=True)
class Act:
    """One change in the making. What it says of itself when the block ends is audited with it."""

    conn: Connection
    subject: str
    before: dict[str, Any] = field(default_factory=dict[str, Any])
    after: dict[str, Any] = field(default_factory=dict[str, Any])


@contextmanager
def connection(desk: Desk) -> Generator[Connection]:
    url = desk.access.need(DATABASE_URL)
    try:
        conn = Connection.connect(
            url, row_factory=dict_row, connect_timeout=_CONNECT_LIMIT_S, application_name="venture"
        )
    except psycopg.OperationalError as error:
        raise Failure(
            f"The database cannot be reached: {str(error).splitlines()[0]}. Runbook: database-connection-errors"
        ) from None
    with conn:
        yield conn


@contextmanager
def looking(desk: Desk) -> Generator[Connection]:
    """One read-only transaction."""
    with connection(desk) as conn:
        conn.read_only = True
        yield conn


@contextmanager
def acting(desk: Desk, action: str, *, subject: str = "") -> Generator[Act]:
    """One transaction: the change and its audit row, or neither. A dry run does all of it and takes it back."""
    with connection(desk) as conn:
        act = Act(conn, subject)
        yield act
        insert_audit(conn, desk, action, subject=act.subject, before=act.before, after=act.after)
        if desk.dry_run:
            conn.rollback()


def insert_audit(
    conn: Connection,
    desk: Desk,
    action: str,
    *,
    subject: str = "",
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    conn.execute(
        """
        INSERT INTO gateway.audit_log (id, actor, action, subject, before, after, request_id)
        VALUES (%s, %s, %s, %s, %s, %s, NULL)
        """,
        (new_id(), desk.actor, action, subject, _json(before), _json(after)),
    )


def audit(desk: Desk, action: str, *, subject: str = "", after: Mapping[str, Any] | None = None) -> None:
    """For an act that something else than the database carries out: written down before it happens."""
    if not desk.dry_run:
        with connection(desk) as conn:
            insert_audit(conn, desk, action, subject=subject, after=after)


def _json(value: Mapping[str, Any] | None) -> Jsonb | None:
    return Jsonb(value, dumps=_dumps) if value else None


def _dumps(value: Any) -> str:
    return json.dumps(value, default=plain)
