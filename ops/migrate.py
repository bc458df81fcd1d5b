"""Apply, take back and list migrations, and give the login roles their passwords.

MIGRATION_DATABASE_URL=postgresql://superuser@host/venture python -m ops.migrate up|down|status
"""

import argparse
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import psycopg
import yoyo  # pyright: ignore[reportMissingTypeStubs]
from psycopg import sql

MIGRATIONS: Final = Path(__file__).parents[1] / "migrations"
LOCK_KEY: Final = 0x76656E74757265  # "venture"
LOGIN_ROLES: Final = {
    "venture_gateway": "GATEWAY_DB_PASSWORD",
    "venture_billing": "BILLING_DB_PASSWORD",
    "venture_metering": "METERING_DB_PASSWORD",
    "venture_agents": "AGENTS_DB_PASSWORD",
    "venture_operator": "OPERATOR_DB_PASSWORD",
}
_WITH_SUPERUSER: Final = {**LOGIN_ROLES, "postgres": "POSTGRES_PASSWORD"}


@contextmanager
def _open(url: str) -> Generator[tuple[Any, Any], None, None]:
    """The runner and all migrations, for one process at a time.

    The advisory lock is the server's and ends with our connection; the runner's own is a row that outlives a killed
    process.
    """
    with psycopg.connect(url, autocommit=True) as guard:
        guard.execute("SELECT pg_advisory_lock(%s)", (LOCK_KEY,))
        backend: Any = yoyo.get_backend(url.replace("postgresql://", "postgresql+psycopg://", 1))  # pyright: ignore[reportUnknownMemberType]
        with backend:
            yield backend, yoyo.read_migrations(str(MIGRATIONS))  # pyright: ignore[reportUnknownMemberType]


def migrate_up(url: str) -> list[str]:
    """Apply what is missing, each file in its own transaction; return the names applied."""
    with _open(url) as (backend, migrations):
        pending = backend.to_apply(migrations)
        names = [migration.id for migration in pending]
        backend.apply_migrations(pending)
        return names


def migrate_down(url: str, *, steps: int | None) -> list[str]:
    """Take back the last `steps` migrations (None: all); return their names, newest first."""
    with _open(url) as (backend, migrations):
        applied = backend.to_rollback(migrations)
        chosen = applied if steps is None else applied[:steps]
        names = [migration.id for migration in chosen]
        backend.rollback_migrations(chosen)
        return names


def status(url: str) -> list[tuple[str, bool]]:
    with _open(url) as (backend, migrations):
        pending = {migration.id for migration in backend.to_apply(migrations)}
        return [(migration.id, migration.id not in pending) for migration in migrations]


def set_passwords(url: str, passwords: dict[str, str]) -> None:
    """Give each role its password; roles that are not named keep theirs."""
    with psycopg.connect(url, autocommit=True) as conn:
        for role, password in passwords.items():
            conn.execute(sql.SQL("ALTER ROLE {} PASSWORD {}").format(sql.Identifier(role), sql.Literal(password)))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m ops.migrate", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("command", choices=["up", "down", "status"])
    parser.add_argument("--steps", type=int, default=1, help="how many migrations `down` takes back (default 1)")
    arguments = parser.parse_args()
    url = os.environ.get("MIGRATION_DATABASE_URL")
    if not url:
        sys.exit("MIGRATION_DATABASE_URL is not set: the URL of a superuser on the database to migrate.")
    if arguments.command == "status":
        for name, is_applied in status(url):
            print(f"{'applied' if is_applied else 'pending'}  {name}")
        return
    names = migrate_up(url) if arguments.command == "up" else migrate_down(url, steps=arguments.steps)
    print("\n".join(names) or "nothing to do")
    if arguments.command == "up":
        set_passwords(url, {role: os.environ[name] for role, name in _WITH_SUPERUSER.items() if os.environ.get(name)})


if __name__ == "__main__":
    main()
