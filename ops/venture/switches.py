"""`venture maintenance` and `venture routes`: closing all of the house or a part of it, live and with an end."""

from typing import Annotated, Final

import typer

from ops.failure import Failure
from ops.venture.database import acting, looking
from ops.venture.desk import AsJson, Desk, DryRun, Reason, Yes

MAINTENANCE: Final = "maintenance"
Group = Annotated[str, typer.Argument(help="The part of /v1 to close: runs, billing, usage, templates…")]
Minutes = Annotated[int | None, typer.Option("--minutes", min=1, max=10_080, help="It ends by itself then.")]


def maintenance_commands() -> typer.Typer:
    app = typer.Typer(help="Maintenance of everything: on, off, status.", no_args_is_help=True)
    app.command("on")(on)
    app.command("off")(off)
    app.command("status")(status)
    return app


def routes_commands() -> typer.Typer:
    app = typer.Typer(help="Switch one group of routes off and on: disable, enable.", no_args_is_help=True)
    app.command("disable")(disable_route)
    app.command("enable")(enable_route)
    return app


def on(
    *, minutes: Minutes = None, reason: Reason = "", dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False
) -> None:
    """Answer everybody but admins with 503, in every replica within 2 s. Health, webhooks and open streams go on."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    desk.confirm("Close the house for maintenance?")
    switch(desk, MAINTENANCE, is_on=True, minutes=minutes, reason=reason)


def off(*, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Open the house again."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    desk.confirm("Open the house again?")
    switch(desk, MAINTENANCE, is_on=False)


def status(*, as_json: AsJson = False) -> None:
    """Which switches are in force."""
    desk = Desk(as_json=as_json)
    with looking(desk) as conn:
        rows = conn.execute(
            """SELECT name, reason, set_by, set_at, expires_at FROM gateway.switches
               WHERE is_on AND (expires_at IS NULL OR expires_at > now()) ORDER BY name"""
        ).fetchall()
    desk.table(rows, columns=("name", "reason", "set_by", "set_at", "expires_at"), empty="Everything is open.")


def disable_route(
    group: Group,
    *,
    minutes: Minutes = None,
    reason: Reason = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Answer /v1/GROUP with 503; everything else goes on."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    desk.confirm(f"Close /v1/{group}?")
    switch(desk, _name(group), is_on=True, minutes=minutes, reason=reason)


def enable_route(group: Group, *, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Open /v1/GROUP again."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    desk.confirm(f"Open /v1/{group} again?")
    switch(desk, _name(group), is_on=False)


def switch(desk: Desk, name: str, *, is_on: bool, minutes: int | None = None, reason: str = "") -> None:
    with acting(desk, "maintenance", subject=name) as act:
        act.after = {"name": name, "is_on": is_on, "minutes": minutes, "reason": reason}
        act.conn.execute(
            """
            INSERT INTO gateway.switches (name, is_on, reason, set_by, set_at, expires_at)
            VALUES (%(name)s, %(is_on)s, %(reason)s, %(by)s, now(), now() + make_interval(mins => %(minutes)s))
            ON CONFLICT (name) DO UPDATE  -- two operators at once: the later one's word stands, both are audited
            SET is_on = EXCLUDED.is_on, reason = EXCLUDED.reason, set_by = EXCLUDED.set_by, set_at = now(),
                expires_at = EXCLUDED.expires_at
            """,
            {"name": name, "is_on": is_on, "reason": reason, "by": desk.actor, "minutes": minutes},
        )
    until = f" for {minutes} minutes" if minutes and is_on else ""
    desk.report(f"{name} is {'on' if is_on else 'off'}{until}, in every replica within 2 s.", act.after)


def _name(group: str) -> str:
    if not group.replace("-", "").isalpha() or not group.islower():
        raise Failure(f"{group!r} is no group of routes: it is the word after /v1/, such as runs.")
    return f"{MAINTENANCE}:{group}"
