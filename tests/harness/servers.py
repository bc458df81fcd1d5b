"""The servers of a test session, started once and shared by its workers: in containers where an engine answers."""

import secrets
import shutil
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

import psycopg

from ops import migrate
from ops.engines import start_engines
from ops.engines.definitions import OPERATOR, SERVICES, render_definitions

TEMPLATE: Final = "venture_template"
# The broker with its users and rights from the first moment, and the bound on messages that it has in earnest.
_BROKER: Final = """\
printf '%s' "$DEFINITIONS" > /tmp/definitions.json
printf '%s\\n' 'load_definitions = /tmp/definitions.json' 'max_message_size = 1048576' > /tmp/rabbitmq.conf
export RABBITMQ_CONFIG_FILE=/tmp/rabbitmq.conf
exec docker-entrypoint.sh rabbitmq-server
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Servers:
    """Where the session's servers are. Plain values, so that they cross to the workers."""

    postgres_url: str
    """The superuser's, without a database name."""
    amqp_urls: Mapping[str, str]
    """By user: each service with its rights, and `operator` with all; without a vhost."""
    redis_url: str
    """Without a database number."""
    vhosts: Sequence[str]
    role_passwords: Mapping[str, str]

    def as_role(self, role: str, database: str) -> str:
        address = self.postgres_url.rpartition("@")[2]
        return f"postgresql://{role}:{self.role_passwords[role]}@{address}/{database}"

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@contextmanager
def start_servers(*, workers: int, fast: bool = True) -> Generator[Servers, None, None]:
    """`fast`: a commit need not reach the disk. What measures commits wants them to."""
    vhosts = [f"test{number}" for number in range(max(workers, 1))]
    with _containers(vhosts, fast=fast) if _docker_answers() else _native(vhosts, fast=fast) as servers:
        _make_template(servers)
        yield servers


def _docker_answers() -> bool:
    if not shutil.which("docker"):
        return False
    return subprocess.run(("docker", "info"), capture_output=True, check=False).returncode == 0  # noqa: S607


def _role_passwords() -> dict[str, str]:
    return {role: secrets.token_hex(16) for role in migrate.LOGIN_ROLES}


@contextmanager
def _native(vhosts: Sequence[str], *, fast: bool) -> Generator[Servers, None, None]:
    with start_engines(vhosts=vhosts, fast=fast) as engines:
        yield Servers(
            postgres_url=engines.postgres_url("").rstrip("/"),
            amqp_urls={user: engines.amqp_url("", user).rstrip("/") for user in engines.amqp_passwords},
            redis_url=engines.redis_url().rpartition("/")[0],
            vhosts=vhosts,
            role_passwords=_role_passwords(),
        )


@contextmanager
def _containers(vhosts: Sequence[str], *, fast: bool) -> Generator[Servers, None, None]:
    from testcontainers.community.postgres import PostgresContainer  # noqa: PLC0415
    from testcontainers.community.redis import RedisContainer  # noqa: PLC0415
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415 - only where an engine answers
    from testcontainers.core.wait_strategies import LogMessageWaitStrategy  # noqa: PLC0415

    superuser_password = secrets.token_hex(16)
    amqp_passwords = {user: secrets.token_hex(16) for user in (OPERATOR, *SERVICES)}
    # Tests throw their data away, so nothing needs to reach the disk.
    flags = "-c max_connections=300" + (
        " -c fsync=off -c synchronous_commit=off -c full_page_writes=off" if fast else ""
    )
    with (
        PostgresContainer("postgres:17", username="postgres", password=superuser_password, dbname="postgres")
        .with_command(f"postgres {flags}") as postgres,
        DockerContainer("rabbitmq:4-management")
        .with_env("DEFINITIONS", render_definitions(vhosts=vhosts, passwords=amqp_passwords))
        .with_command(["sh", "-euc", _BROKER])
        .with_exposed_ports(5672)
        .waiting_for(LogMessageWaitStrategy("Server startup complete")) as rabbitmq,
        RedisContainer("redis:8") as redis,
    ):  # fmt: skip
        amqp, database, cache = (
            f"{container.get_container_host_ip()}:{container.get_exposed_port(port)}"
            for container, port in ((rabbitmq, 5672), (postgres, 5432), (redis, 6379))
        )
        yield Servers(
            postgres_url=f"postgresql://postgres:{superuser_password}@{database}",
            amqp_urls={user: f"amqp://{user}:{password}@{amqp}" for user, password in amqp_passwords.items()},
            redis_url=f"redis://{cache}",
            vhosts=vhosts,
            role_passwords=_role_passwords(),
        )


def _make_template(servers: Servers) -> None:
    """One migrated database that every test's own is cloned from."""
    with psycopg.connect(f"{servers.postgres_url}/postgres", autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {TEMPLATE}")
    url = f"{servers.postgres_url}/{TEMPLATE}"
    migrate.migrate_up(url)
    migrate.set_passwords(url, dict(servers.role_passwords))
