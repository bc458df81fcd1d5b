"""`venture migrate`: up, down, status. The superuser's work, since a schema has no other owner."""

from typing import Annotated

import typer

from ops import migrate
from ops.failure import Failure
from ops.venture.database import audit
from ops.venture.desk import NOT_WELL, AsJson, Desk, DryRun, Yes, leave


def commands() -> typer.Typer:
    app = typer.Typer(help="Migrations: up, down, status.", no_args_is_help=True)
    app.command("up")(up)
    app.command("down")(down)
    app.command("status")(status)
    return app


def superuser_url(desk: Desk) -> str:
    return desk.access.get("MIGRATION_DATABASE_URL") or desk.access.need("SUPERUSER_DATABASE_URL")


def up(*, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Apply what is pending, each file in its own transaction."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    pending = [name for name, is_applied in migrate.status(superuser_url(desk)) if not is_applied]
    if pending:
        desk.confirm(f"Apply {', '.join(pending)}?")
    if pending and not dry_run:
        pending = migrate.migrate_up(superuser_url(desk))
        audit(desk, "migrated_up", after={"migrations": pending})
    desk.report(f"Applied {', '.join(pending) or 'nothing: all is applied'}.", {"migrations": pending})


def down(
    *,
    steps: Annotated[int, typer.Option(min=1, help="How many to take back.")] = 1,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Take the last migrations back. Their tables go, with all that is in them: make a backup first."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    applied = [name for name, is_applied in migrate.status(superuser_url(desk)) if is_applied]
    last = applied[-steps:][::-1]
    if not last:
        raise Failure("Nothing is applied.")
    desk.confirm(f"Take back {', '.join(last)}, with the data in their tables?")
    if not dry_run:
        audit(desk, "migrated_down", after={"migrations": last})  # before it: the log's own table may be among them
        last = migrate.migrate_down(superuser_url(desk), steps=steps)
    desk.report(f"Took back {', '.join(last)}.", {"migrations": last})


def status(*, as_json: AsJson = False) -> None:
    """Which migrations are applied; exit 1 if some are not."""
    desk = Desk(as_json=as_json)
    rows = [
        {"migration": name, "state": "applied" if is_applied else "pending"}
        for name, is_applied in migrate.status(superuser_url(desk))
    ]
    desk.table(rows, columns=("migration", "state"))
    if any(row["state"] == "pending" for row in rows):
        leave(NOT_WELL)
