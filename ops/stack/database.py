"""Getting the running engines and gateway into the state that services and people expect: schema, roles, one admin."""

import hashlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request

from ops.engines.accounts import data_directory
from ops.engines.definitions import OPERATOR, SERVICES
from ops.failure import Failure
from ops.home import ROOT, Home
from ops.stack.environments import DATABASE, Addresses
from ops.stack.health import open_url
from ops.stack.layout import source_digest

_EMAIL_EXISTS = 422


def migrate(home: Home, where: Addresses) -> None:
    """Create the database, apply what is missing, and set the roles' passwords; nothing when all is as it was."""
    record = data_directory(home, "postgres") / "venture.migrated"
    digest = _digest(where)
    if record.exists() and record.read_text() == digest:
        return
    _create_database(where)
    run_migrations("up", where)
    record.write_text(digest)


def _digest(where: Addresses) -> str:
    """Stands for what a database has after migrating: the schema and the roles' passwords."""
    return hashlib.sha256(f"{source_digest('migrations', 'ops/migrate.py')}{_passwords(where)}".encode()).hexdigest()


def _passwords(where: Addresses) -> dict[str, str]:
    names = [f"{owner.upper()}_DB_PASSWORD" for owner in (OPERATOR, *SERVICES)]
    return {name: where.values[name] for name in names}


def run_migrations(command: str, where: Addresses) -> str:
    """Run `ops.migrate` on the stack's database and return what it said."""
    environment = {"PATH": os.environ["PATH"], "MIGRATION_DATABASE_URL": where.superuser(), **_passwords(where)}
    done = subprocess.run(
        (sys.executable, "-m", "ops.migrate", command),
        check=False, cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    if done.returncode != 0:
        raise Failure(f"The migrations failed; nothing after the failing one was applied.\n{done.stderr.strip()}")
    return done.stdout


def _create_database(where: Addresses) -> None:
    import psycopg  # noqa: PLC0415 - slow to import, and most runs of `make up` need none of it
    from psycopg import sql  # noqa: PLC0415

    with psycopg.connect(where.superuser("postgres"), autocommit=True) as connection:
        if not connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [DATABASE]).fetchone():
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(DATABASE)))


def seed_admin(where: Addresses) -> None:
    """Have one admin from the start, so that consoles and admin routes can be used; safe to repeat."""
    import psycopg  # noqa: PLC0415 - slow to import, and most runs of `make up` need none of it

    _create_user(where, where.values["ADMIN_EMAIL"], where.values["ADMIN_PASSWORD"])
    with psycopg.connect(where.database("operator")) as connection:
        connection.execute(
            """UPDATE user_profiles SET premium_features = jsonb_set(premium_features, '{admin}', 'true')
                WHERE user_id = (SELECT id FROM auth.users WHERE email = %s)
                  AND premium_features -> 'admin' IS DISTINCT FROM 'true'""",
            [where.values["ADMIN_EMAIL"].lower()],
        )


def _create_user(where: Addresses, email: str, password: str) -> None:
    key = where.values["SUPABASE_SERVICE_ROLE_KEY"]
    request = urllib.request.Request(  # noqa: S310 - the gateway of this stack
        f"{where.http('gateway')}/auth/v1/admin/users",
        data=json.dumps({"email": email, "password": password, "email_confirm": True}).encode(),
        headers={"apikey": key, "Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    try:
        open_url(request).close()
    except urllib.error.HTTPError as error:
        answer = error.read().decode(errors="replace")
        if error.code != _EMAIL_EXISTS or "email_exists" not in answer:
            raise Failure(f"The gateway would not create the admin {email}: {error.code} {answer}") from None
