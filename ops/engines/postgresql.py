"""A PostgreSQL of our own: its data made on first use, its superuser's password kept in step with the settings."""

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

from ops.engines import accounts
from ops.engines.packages import Programs
from ops.engines.probes import postgres_answers
from ops.failure import Failure
from ops.home import Home
from ops.programs import Program

SUPERUSER = "postgres"
_SETTINGS = (
    "listen_addresses=127.0.0.1",
    "unix_socket_directories=",
    "password_encryption=scram-sha-256",
    "max_connections=300",
    "log_line_prefix=%m [%p] %u ",
)
# Tests throw their data away, so nothing needs to reach the disk.
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_wal_size=4GB", "checkpoint_timeout=1h")


def superuser_url(port: int, password: str, database: str = "postgres") -> str:
    return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{port}/{database}"


def describe(home: Home, programs: Programs, *, port: int, password: str, fast: bool = False) -> Program:
    accounts.check_account()
    data = accounts.data_directory(home, "postgres").resolve()
    settings = (f"port={port}", *_SETTINGS, *(_FAST if fast else ()))
    flags = tuple(word for setting in settings for word in ("-c", setting))
    return Program(
        name="postgres-1",
        argv=(*accounts.prefix(), str(programs.postgres), "-D", str(data), *flags),
        environment={"LC_ALL": "C.UTF-8"},
        probe=postgres_answers(port, SUPERUSER),
        before_start=lambda: _prepare(data, programs, password),
        inputs=_digest(password),
        # SIGINT ends sessions and then the server; SIGTERM would wait for the last client to leave by itself.
        stop_signal="INT",
    )


def _prepare(data: Path, programs: Programs, password: str) -> None:
    """Make the data if there is none (seconds), and set the password if it is not the one on record."""
    record = data / "venture.password"
    if not (data / "PG_VERSION").exists():
        _create(data, programs, password)
        record.write_text(_digest(password))
    _check_version(data, programs)
    if not record.exists() or record.read_text() != _digest(password):
        _set_password(data, programs, password)
        record.write_text(_digest(password))


def _create(data: Path, programs: Programs, password: str) -> None:
    """Built beside its place and then moved there: an interrupted attempt leaves nothing that looks finished."""
    draft = data.with_name("postgres.new")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(mode=0o700)
    accounts.give_to_account(draft)
    with tempfile.NamedTemporaryFile("w") as password_file:
        password_file.write(password)
        password_file.flush()
        accounts.give_to_account(Path(password_file.name))
        initdb = (
            *accounts.prefix(), programs.initdb, "-D", draft, "--no-sync", "--data-checksums", "--encoding=UTF8",
            "--locale=C.UTF-8", f"--username={SUPERUSER}", "--auth=scram-sha-256", f"--pwfile={password_file.name}",
        )  # fmt: skip
        made = subprocess.run(initdb, check=False, capture_output=True, text=True, cwd="/")
    if made.returncode != 0:
        raise Failure(f"PostgreSQL could not create its data in {draft}:\n{made.stderr.strip()}")
    draft.rename(data)


def _check_version(data: Path, programs: Programs) -> None:
    made_by = (data / "PG_VERSION").read_text().strip()
    version = subprocess.run((programs.postgres, "--version"), check=True, capture_output=True, text=True).stdout
    if f" {made_by}." not in version:
        raise Failure(
            f"The data in {data} was made by PostgreSQL {made_by}, and this is {version.strip()}. "
            "Move it over with pg_dump and psql, or remove it with `make clean` and start anew."
        )


def _set_password(data: Path, programs: Programs, password: str) -> None:
    """In single-user mode, which asks for no password and for which the server must be down."""
    quoted = password.replace("'", "''")
    statement = f"ALTER ROLE {SUPERUSER} PASSWORD '{quoted}'\n"
    single = (*accounts.prefix(), programs.postgres, "--single", "-D", data, "postgres")
    done = subprocess.run(single, check=False, capture_output=True, text=True, input=statement, cwd="/")
    if done.returncode != 0:
        raise Failure(f"PostgreSQL would not take the password of the settings:\n{done.stderr.strip()}")


def _digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()
