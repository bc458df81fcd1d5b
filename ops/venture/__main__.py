"""`python -m ops.venture`, or `scripts/venture`: the operator's command line."""

import sys
from collections.abc import Sequence

import typer

from libs.common.logs import configure_logging
from ops.failure import Failure
from ops.venture import (
    backup,
    billing,
    checking,
    doctor,
    launch,
    migrations,
    parked,
    plans,
    rotate,
    runs,
    switches,
    users,
)
from ops.venture.desk import NOT_CONFIRMED, NOT_FOUND, NOT_WELL, NotConfirmed, NotFound
from ops.venture.verify_env import verify_env

HELP = """Operate Venture Companion. docs/RUNBOOK.md says when to use what.

Exit codes: 0 done and well; 1 something is not as it should be; 2 wrong usage; 3 not confirmed; 4 not found.
"""


def build_app() -> typer.Typer:
    app = typer.Typer(name="venture", help=HELP, no_args_is_help=True, rich_markup_mode=None)
    app.command("doctor")(doctor.doctor)
    app.command("verify-env")(verify_env)
    app.command("launch")(launch.launch)
    app.command("orphans")(plans.orphans)
    app.command("trace")(runs.trace)
    app.command("backup")(backup.backup)
    app.command("restore")(backup.restore)
    for name, group in (
        ("check", checking.commands()),
        ("migrate", migrations.commands()),
        ("users", users.commands()),
        ("subscription", plans.subscription_commands()),
        ("usage", plans.usage_commands()),
        ("limits", plans.limits_commands()),
        ("maintenance", switches.maintenance_commands()),
        ("routes", switches.routes_commands()),
        ("billing", billing.commands()),
        ("parked", parked.commands()),
        ("runs", runs.commands()),
        ("rotate", rotate.commands()),
    ):
        app.add_typer(group, name=name)
    return app


def main(arguments: Sequence[str] | None = None) -> int:
    configure_logging(service="venture", level="ERROR")
    try:
        build_app()(args=arguments, prog_name="venture")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else NOT_WELL
    except NotFound as failure:
        return _refuse(failure, NOT_FOUND)
    except NotConfirmed as failure:
        return _refuse(failure, NOT_CONFIRMED)
    except Failure as failure:
        return _refuse(failure, NOT_WELL)
    return 0


def _refuse(failure: Failure, code: int) -> int:
    print(failure, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
