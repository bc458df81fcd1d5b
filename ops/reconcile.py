"""`python -m ops.reconcile [--fix]`: have billing compared with Stripe, and show the drift that is left."""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any
from uuid import UUID

import psycopg

from libs.common.ids import new_id
from ops.stack.stack import Stack

POLL_INTERVAL_S = 1.0


def reconcile(url: str, *, is_fixing: bool) -> int:
    """Ask for a run as the operator, wait for the worker that carries it out, print its report; return what is left."""
    run_id = new_id()
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute("INSERT INTO billing.reconciliations (id, is_fixing) VALUES (%s, %s)", (run_id, is_fixing))
        counts = _finished(conn, run_id)
        drift = conn.execute(
            "SELECT object_id, what, ours, theirs, since FROM billing.drift ORDER BY since, object_id"
        ).fetchall()
    for object_id, what, ours, theirs, since in drift:
        print(f"{object_id}  {what}: ours {ours}, theirs {theirs}, since {since:%Y-%m-%d %H:%M:%S%z}")
    print(" ".join(f"{name}={count}" for name, count in counts.items()), f"drift={len(drift)}")
    return len(drift)


def _finished(conn: psycopg.Connection[Any], run_id: UUID) -> dict[str, int]:
    shown = None
    while True:
        row = conn.execute(
            "SELECT finished_at IS NOT NULL, counts, last_error FROM billing.reconciliations WHERE id = %s", (run_id,)
        ).fetchone()
        if row is None:
            raise LookupError("the run was deleted")
        is_finished, counts, error = row
        if is_finished:
            return counts
        if error is not None and error != shown:
            shown = error
            print(f"waiting: {error}", file=sys.stderr)
        time.sleep(POLL_INTERVAL_S)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m ops.reconcile", description="Compare billing with Stripe.")
    parser.add_argument("--fix", action="store_true", help="mend what differs, except profiles changed by hand")
    parser.add_argument("--database-url", help="the operator's; the running stack's where left out")
    flags = parser.parse_args(argv)
    left = reconcile(flags.database_url or Stack().environment()["OPERATOR_DATABASE_URL"], is_fixing=flags.fix)
    sys.exit(1 if left else 0)


if __name__ == "__main__":
    main()
