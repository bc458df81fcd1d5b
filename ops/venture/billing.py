"""`venture billing`: off and on, the comparison with Stripe, webhook events and their replay."""

import time
from typing import Annotated, Any, Final

import typer

from libs.common.ids import new_id
from ops.failure import Failure
from ops.venture import services
from ops.venture.database import acting, audit, looking
from ops.venture.desk import NOT_WELL, AsJson, Desk, DryRun, NotFound, Reason, Yes, leave
from ops.venture.switches import MAINTENANCE, Minutes, switch

_POLL_S: Final = 0.5
_EVENTS: Final = ("id", "type", "object_id", "received_at", "handled_at", "last_error")


def commands() -> typer.Typer:
    app = typer.Typer(help="Billing and Stripe: disable, enable, reconcile, events.", no_args_is_help=True)
    app.command("disable")(disable)
    app.command("enable")(enable)
    app.command("reconcile")(reconcile)
    events = typer.Typer(help="Stripe's webhook events: list, show, replay.", no_args_is_help=True)
    events.command("list")(list_events)
    events.command("show")(show_event)
    events.command("replay")(replay_events)
    app.add_typer(events, name="events")
    return app


def disable(
    *, minutes: Minutes = None, reason: Reason = "", dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False
) -> None:
    """Answer billing's routes with 503, live. Webhooks are still stored, plans stay as they are."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    desk.confirm("Switch billing's routes off?")
    switch(desk, f"{MAINTENANCE}:billing", is_on=True, minutes=minutes, reason=reason)


def enable(*, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Open billing's routes again."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    desk.confirm("Switch billing's routes on?")
    switch(desk, f"{MAINTENANCE}:billing", is_on=False)


def reconcile(
    *,
    fix: Annotated[bool, typer.Option("--fix", help="Fetch again all that differs.")] = False,
    wait_s: Annotated[int, typer.Option(help="How long to wait for the comparison at most.")] = 300,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Compare billing with Stripe and show what differs; exit 1 if something is left."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    if fix:
        desk.confirm("Have all that differs fetched again from Stripe?")
    run_id = new_id()
    with acting(desk, "billing_reconcile", subject=str(run_id)) as act:
        act.after = {"fix": fix}
        act.conn.execute("INSERT INTO billing.reconciliations (id, is_fixing) VALUES (%s, %s)", (run_id, fix))
    counts = {} if dry_run else _await_comparison(desk, str(run_id), wait_s)
    with looking(desk) as conn:
        drift = conn.execute(
            "SELECT object_id, what, ours, theirs, since FROM billing.drift ORDER BY since, object_id, what"
        ).fetchall()
    desk.answer({"counts": counts, "drift": drift, "dry_run": dry_run})
    if not as_json:
        if dry_run:
            desk.say("Dry run, no comparison was asked for. What the last one found to differ:")
        columns = ("object_id", "what", "ours", "theirs", "since")
        desk.table(drift, columns=columns, empty="Our tables and Stripe agree.")
    if drift:
        leave(NOT_WELL)


def _await_comparison(desk: Desk, run_id: str, wait_s: int) -> dict[str, Any]:
    deadline, told = time.monotonic() + wait_s, None
    while True:
        with looking(desk) as conn:
            row = conn.execute(
                "SELECT finished_at, counts, last_error FROM billing.reconciliations WHERE id = %s", (run_id,)
            ).fetchone()
        if row is None:
            raise Failure("The comparison was deleted while it was waited for.")
        if row["finished_at"] is not None:
            return row["counts"]
        if row["last_error"] and row["last_error"] != told:
            told = row["last_error"]
            desk.note(f"waiting: {told}")
        if time.monotonic() > deadline:
            raise Failure(f"No comparison within {wait_s} s; is billing's worker up? Runbook: stripe-drift")
        time.sleep(_POLL_S)


def list_events(
    *,
    unhandled: Annotated[bool, typer.Option("--unhandled", help="Only those still to be worked off.")] = False,
    event_type: Annotated[str | None, typer.Option("--type")] = None,
    object_id: Annotated[str | None, typer.Option("--object")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000)] = 20,
    as_json: AsJson = False,
) -> None:
    """Webhook events as stored, newest first, with the error of the last attempt to work one off."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        rows = conn.execute(
            """
            SELECT e.id, e.type, e.object_id, e.received_at, e.handled_at,
                   CASE WHEN e.handled_at IS NULL THEN r.last_error END AS last_error
            FROM billing.stripe_events e LEFT JOIN billing.refreshes r USING (object_id)
            WHERE (NOT %(unhandled)s OR e.handled_at IS NULL)
                AND (%(type)s::text IS NULL OR e.type = %(type)s)
                AND (%(object)s::text IS NULL OR e.object_id = %(object)s)
            ORDER BY e.received_at DESC, e.id LIMIT %(limit)s
            """,
            {"unhandled": unhandled, "type": event_type, "object": object_id, "limit": limit},
        ).fetchall()
    desk.table(rows, columns=_EVENTS, empty="No such events.")


def show_event(
    event_id: Annotated[str, typer.Argument(help="evt_…", show_default=False)], *, as_json: AsJson = False
) -> None:
    """One event with what was kept of its payload, and how its object stands."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        row = conn.execute(
            """
            SELECT e.id, e.type, e.object_id, e.stripe_customer_id, e.livemode, e.api_version, e.created,
                   e.received_at, e.handled_at, e.payload, r.wanted, r.done, r.attempts, r.due_at, r.last_error
            FROM billing.stripe_events e LEFT JOIN billing.refreshes r USING (object_id) WHERE e.id = %s
            """,
            (event_id,),
        ).fetchone()
    if row is None:
        raise NotFound(f"No event {event_id} is stored.")
    desk.answer(row)
    desk.facts(row)


def replay_events(
    event_id: Annotated[str | None, typer.Argument(help="evt_…; without: those that the options choose.")] = None,
    *,
    event_type: Annotated[str | None, typer.Option("--type")] = None,
    since: Annotated[str | None, typer.Option(help="Received since, such as 2026-01-31T00:00:00Z.")] = None,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Fetch again from Stripe what the events were about. Safe to repeat: the object as it is now is what counts."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    if event_id is None and event_type is None and since is None:
        raise Failure("Name an event, or choose some with --type or --since.")
    chosen = {"event_id": event_id, "type": event_type, "received_since": since}
    with looking(desk) as conn:
        row = (
            conn.execute(
                """
            SELECT count(*) AS events, count(DISTINCT object_id) AS objects FROM billing.stripe_events
            WHERE (%(event_id)s::text IS NULL OR id = %(event_id)s) AND (%(type)s::text IS NULL OR type = %(type)s)
                AND (%(received_since)s::timestamptz IS NULL OR received_at >= %(received_since)s::timestamptz)
            """,
                chosen,
            ).fetchone()
            or {}
        )
    if not row.get("events"):
        raise NotFound("No stored event is chosen by that.")
    desk.confirm(f"Fetch {row['objects']} objects of {row['events']} events again?")
    audit(desk, "billing_events_replay", subject=event_id or "", after=chosen)
    if not dry_run:
        body = {name: value for name, value in chosen.items() if value is not None}
        row = {**row, **services.internal(desk, "billing", "POST", "/internal/admin/webhook-events/replay", body=body)}
    desk.report(f"{row['objects']} objects are fetched again.", row)
