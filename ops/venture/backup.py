"""`venture backup` and `venture restore`: the database, what is parked, and an honest account of the gap.

A dump is one moment. What was told before that moment and not yet handled then is known from the dump itself: rows of
an outbox that were sent, and that the inbox of a consumer does not have. A restore sends those again, and the inboxes
see to it that nothing counts twice. What happened after that moment is lost where it was only ours, and fetched again
where Stripe has it.
"""

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from libs.common.broker import ParkedMessage
from libs.common.clock import system_clock
from libs.common.ids import new_id
from ops.failure import Failure
from ops.files import write_private
from ops.venture import dumps
from ops.venture.database import audit, connection, looking
from ops.venture.desk import AsJson, Desk, DryRun, Yes
from ops.venture.migrations import superuser_url
from ops.venture.parked import with_broker

Through = Annotated[
    str,
    typer.Option(
        help="Words before PostgreSQL's tools, where they run elsewhere: 'docker compose -p venture exec -T postgres'."
    ),
]
_DUMP, _PARKED, _MANIFEST = "venture.dump", "parked.json", "manifest.json"


def backup(
    directory: Annotated[Path, typer.Argument(help="A new directory.", show_default=False)],
    *,
    through: Through = "",
    as_json: AsJson = False,
) -> None:
    """Dump the database and what is parked, at any time, with everything running."""
    desk = Desk(as_json=as_json)
    directory.mkdir(mode=0o700, parents=True)
    tools = dumps.Tools(url=superuser_url(desk), through=through.split())
    with looking(desk) as conn:
        row = conn.execute("SELECT now() AS at").fetchone() or {}
    tools.dump(directory / _DUMP)
    parked = with_broker(desk, lambda broker: broker.messages())
    queues = with_broker(desk, lambda broker: broker.queues())
    write_private(directory / _PARKED, json.dumps([_stored(message) for message in parked]))
    manifest = {
        "taken_at": row["at"].isoformat(),
        "taken_by": desk.actor,
        "bytes": (directory / _DUMP).stat().st_size,
        "waiting": {name: queue.waiting for name, queue in queues.items() if queue.waiting},
        "parked": len(parked),
    }
    write_private(directory / _MANIFEST, json.dumps(manifest, indent=1))
    audit(desk, "backup", subject=str(directory), after=manifest)
    desk.answer(manifest)
    desk.say(f"{directory}: {manifest['bytes']} bytes as of {manifest['taken_at']}, {len(parked)} parked messages.")


def restore(
    directory: Annotated[Path, typer.Argument(help="What `venture backup` made.", show_default=False)],
    *,
    through: Through = "",
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Put a backup in the database's place, heal what can be healed, report the gap. The old one is kept."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    manifest = json.loads(_read(directory / _MANIFEST))
    desk.confirm(f"Replace the database by its state of {manifest['taken_at']}?")
    tools = dumps.Tools(url=superuser_url(desk), through=through.split())
    queues = list(with_broker(desk, lambda broker: broker.queues()))
    audit(desk, "restore", subject=str(directory), after={"taken_at": manifest["taken_at"]})
    tools.load(directory / _DUMP)
    again = tools.send_again(queues)
    kept_as = "" if dry_run else tools.put_in_place()
    if dry_run:
        tools.throw_away()
    else:
        _ask_stripe(desk)
        audit(desk, "restored", subject=str(directory), after={"kept_as": kept_as, "sent_again": again})
    lost_s = (system_clock() - datetime.fromisoformat(manifest["taken_at"])).total_seconds()
    report = {
        "taken_at": manifest["taken_at"],
        "lost_s": round(lost_s),
        "sent_again": again,
        "parked_put_back": [] if dry_run else _put_back(desk, directory),
        "before": kept_as,
    }
    _tell(desk, report)


def _tell(desk: Desk, report: dict[str, Any]) -> None:
    desk.answer({**report, "dry_run": desk.dry_run})
    desk.say(
        f"{'Dry run, nothing was changed. ' if desk.dry_run else ''}The database as of {report['taken_at']}.\n"
        f"The gap: what was only in the database and happened in the {report['lost_s']} s since then is gone.\n"
        f"Healed: {sum(report['sent_again'].values())} events that consumers had not handled by then are sent again, "
        f"{len(report['parked_put_back'])} parked messages are back."
    )
    if not desk.dry_run:
        desk.say(
            f"Stripe is asked for all that it knows better: `venture billing reconcile --fix` shows what is left.\n"
            f"The database before is kept as {report['before']}: drop it once nothing from it is needed."
        )


def _ask_stripe(desk: Desk) -> None:
    """A worker compares and mends in its own time; without billing nobody takes it up, and that is fine."""
    with connection(desk) as conn:
        conn.execute("INSERT INTO billing.reconciliations (id, is_fixing) VALUES (%s, true)", (new_id(),))


def _put_back(desk: Desk, directory: Path) -> list[str]:
    """Parked messages of the backup that the broker does not have any more, as after the loss of its disk."""
    stored = [_parked(one) for one in json.loads(_read(directory / _PARKED))]
    return with_broker(desk, lambda broker: broker.park_again(stored)) if stored else []


def _stored(message: ParkedMessage) -> dict[str, Any]:
    return {**asdict(message), "body": message.body.decode("utf-8", "surrogateescape")}


def _parked(stored: dict[str, Any]) -> ParkedMessage:
    return ParkedMessage(**{**stored, "body": stored["body"].encode("utf-8", "surrogateescape")})


def _read(path: Path) -> str:
    if not path.exists():
        raise Failure(f"{path.parent} is no backup: it has no {path.name}.")
    return path.read_text()
