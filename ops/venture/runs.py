"""`venture runs`: show, cancel, requeue; and `venture trace`, one run's timeline through the whole house."""

import json
import subprocess
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from ops.failure import Failure
from ops.venture import services
from ops.venture.database import Connection, acting, audit, looking
from ops.venture.desk import AsJson, Desk, DryRun, NotFound, Yes
from ops.venture.users import check_uuid

RunId = Annotated[str, typer.Argument(help="The run's id.", show_default=False)]
_LOG_LIMIT_S: Final = 10


def commands() -> typer.Typer:
    app = typer.Typer(help="Runs: show, cancel, requeue.", no_args_is_help=True)
    app.command("show")(show)
    app.command("cancel")(cancel)
    app.command("requeue")(requeue)
    return app


def show(
    run_id: Annotated[str | None, typer.Argument(help="The run's id; without: what waits or runs.")] = None,
    *,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """One run, or those that wait or run, oldest first."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        if run_id is not None:
            row = _run(conn, run_id)
            desk.answer(row)
            desk.facts(row)
            return
        rows = conn.execute(
            """
            SELECT id, user_id, status, attempt, leased_by, lease_expires_at, created_at FROM agent_runs
            WHERE status IN ('queued', 'running') ORDER BY created_at LIMIT %s
            """,
            (limit,),
        ).fetchall()
    columns = ("id", "user_id", "status", "attempt", "leased_by", "lease_expires_at", "created_at")
    desk.table(rows, columns=columns, empty="No run waits or runs.")


def _run(conn: Connection, run_id: str) -> dict[str, Any]:
    row = conn.execute(
        """
        SELECT id, user_id, status, agent_type, model_requested, model_used, input_tokens, output_tokens,
               cost_micro_usd, is_billable, error, attempt, leased_by, lease_expires_at, cancel_requested_at,
               traceparent, created_at, queued_at, started_at, finished_at
        FROM agent_runs WHERE id = %s
        """,
        (check_uuid(run_id),),
    ).fetchone()
    if row is None:
        raise NotFound(f"There is no run {run_id}.")
    return row


def cancel(run_id: RunId, *, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """End a run: at once if it waits, within seconds if it runs. An ended one stays as it is."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    with looking(desk) as conn:
        run = _run(conn, run_id)
    desk.confirm(f"Cancel run {run_id} ({run['status']})?")
    audit(desk, "run_cancelled", subject=run_id, after={"was": run["status"]})
    status = run["status"]
    if not dry_run:
        path = f"/internal/runs/{run_id}/cancel"
        status = services.internal(desk, "agents", "POST", path, user_id=run["user_id"])["status"]
    desk.report(f"{run_id} is asked to end; it is {status} now.", {"id": run_id, "status": status})


def requeue(run_id: RunId, *, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Take a running run away from its worker and give it to another; the first can write nothing any more."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    with looking(desk) as conn:
        run = _run(conn, run_id)
    if run["status"] != "running":
        raise Failure(f"{run_id} is {run['status']}: only a running one has a lease to take away.")
    desk.confirm(f"Take {run_id} away from {run['leased_by']}?")
    with acting(desk, "run_requeued", subject=run_id) as act:
        act.before = {"leased_by": run["leased_by"], "attempt": run["attempt"]}
        act.conn.execute(
            "UPDATE agent_runs SET lease_expires_at = now() WHERE id = %s AND status = 'running'", (run["id"],)
        )
    desk.report(f"{run_id} goes to the next free worker.", {"id": run_id, "attempt": run["attempt"]})


def trace(run_id: RunId, *, as_json: AsJson = False) -> None:
    """One timeline from the request to Stripe: what each service stored and told about this run, and what it logged."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        run = _run(conn, run_id)
        steps = _stored(conn, run)
    trace_id = (run["traceparent"] or "--").split("-")[1]
    if desk.access.logs is not None and trace_id:
        steps += _logged(desk.access.logs, trace_id)
    steps.sort(key=lambda step: step["at"])
    desk.answer({"run": run, "trace_id": trace_id, "steps": steps})
    if not as_json:
        desk.say(f"run {run_id}, {run['status']}, user {run['user_id']}, trace {trace_id or 'unknown'}")
        desk.table(steps, columns=("at", "where", "what", "detail"))


_STEPS: Final = """
    SELECT created_at AS at, 'gateway' AS "where", 'accepted: ' || type AS what,
           jsonb_build_object('event_id', id, 'sent_at', sent_at) AS detail
    FROM gateway.outbox WHERE type = 'gateway.run_requested.v1' AND data ->> 'run_id' = %(run)s
    UNION ALL
    SELECT created_at, 'metering', 'held', amounts FROM metering.holds WHERE id::text = %(run)s
    UNION ALL
    SELECT ended_at, 'metering', 'hold ' || state, amounts FROM metering.holds
    WHERE id::text = %(run)s AND ended_at IS NOT NULL
    UNION ALL
    SELECT i.handled_at, 'agents', 'received', jsonb_build_object('event_id', o.id)
    FROM gateway.outbox o JOIN agents.inbox i ON i.event_id = o.id
    WHERE o.type = 'gateway.run_requested.v1' AND o.data ->> 'run_id' = %(run)s
    UNION ALL
    SELECT min(created_at), 'agents', type || CASE WHEN count(*) > 1 THEN ' x' || count(*) ELSE '' END,
           CASE WHEN type = 'run.delta' THEN NULL ELSE (array_agg(data ORDER BY seq))[1] END
    FROM agents.run_events WHERE run_id::text = %(run)s GROUP BY type
    UNION ALL
    SELECT created_at, 'agents', 'told: ' || type, data - 'task' FROM agents.outbox WHERE data ->> 'run_id' = %(run)s
    UNION ALL
    SELECT recorded_at, 'metering', 'booked ' || kind || ': ' || metric_type,
           jsonb_build_object('amount', amount, 'source', source)
    FROM metering.usage_ledger
    WHERE user_id = %(user)s AND (event_id LIKE %(run)s || '%%' OR attributes ->> 'run_id' = %(run)s
        OR event_id IN (SELECT id::text FROM agents.outbox WHERE data ->> 'run_id' = %(run)s))
    UNION ALL
    SELECT created_at, 'metering', 'told: ' || type, data FROM metering.outbox WHERE data ->> 'hold_id' = %(run)s
    UNION ALL
    SELECT created_at, 'billing', 'Stripe customer', jsonb_build_object('id', stripe_customer_id)
    FROM billing.customers WHERE user_id::text = %(user)s
    UNION ALL
    SELECT created_at, 'billing', 'Stripe subscription ' || status, jsonb_build_object('id', id, 'tier', tier)
    FROM billing.subscriptions WHERE user_id::text = %(user)s
    UNION ALL
    SELECT created_at, 'billing', 'Stripe invoice ' || status,
           jsonb_build_object('id', id, 'amount_paid_minor', amount_paid_minor, 'currency', currency)
    FROM billing.invoices WHERE user_id::text = %(user)s
    ORDER BY at
"""


def _stored(conn: Connection, run: dict[str, Any]) -> list[dict[str, Any]]:
    return conn.execute(_STEPS, {"run": str(run["id"]), "user": run["user_id"]}).fetchall()


def _logged(logs: Path, trace_id: str) -> list[dict[str, Any]]:
    """Log lines of the trace. Stored lines go by what the database's clock said, these by each process's own."""
    files = sorted(path for path in logs.glob("*.log*") if path.name.split("-")[0] in {"gateway", "agents", "metering"})
    if not files:
        return []
    found = subprocess.run(
        ("grep", "-h", "-F", trace_id, *files), check=False, capture_output=True, text=True, timeout=_LOG_LIMIT_S
    )
    return list(_read_lines(found.stdout))


def _read_lines(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            at = datetime.fromisoformat(entry["timestamp"])
        except (ValueError, KeyError, TypeError):
            continue
        detail = {
            name: entry[name]
            for name in ("route", "status", "duration_ms", "queue", "outcome", "request_id")
            if name in entry
        }
        yield {"at": at, "where": entry.get("service"), "what": f"log: {entry.get('event')}", "detail": detail}
