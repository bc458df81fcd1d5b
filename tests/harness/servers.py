"""The servers of a test session, started once and shared by its workers: in containers where an engine answers."""

import secrets
import shutil
import subprocess
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import quote

import psycopg

from ops import migrate
from ops.engines import start_engines

TEMPLATE: Final = "venture_template"
SERVICES: Final = ("gateway", "billing", "metering", "agents")


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
def start_servers(*, workers: int) -> Generator[Servers, None, None]:
    vhosts = [f"test{number}" for number in range(max(workers, 1))]
    with _containers(vhosts) if _docker_answers() else _native(vhosts) as servers:
        _make_template(servers)
        yield servers


def _docker_answers() -> bool:
    if not shutil.which("docker"):
        return False
    return subprocess.run(("docker", "info"), capture_output=True, check=False).returncode == 0  # noqa: S607


def _role_passwords() -> dict[str, str]:
    return {role: secrets.token_hex(16) for role in migrate.LOGIN_ROLES}


@contextmanager
def _native(vhosts: Sequence[str]) -> Generator[Servers, None, None]:
    with start_engines(vhosts=vhosts) as engines:
        yield Servers(
            postgres_url=engines.postgres_url("").rstrip("/"),
            amqp_urls={user: engines.amqp_url("", user).rstrip("/") for user in engines.amqp_passwords},
            redis_url=engines.redis_url().rpartition("/")[0],
            vhosts=vhosts,
            role_passwords=_role_passwords(),
        )


@contextmanager
def _containers(vhosts: Sequence[str]) -> Generator[Servers, None, None]:
    from testcontainers.postgres import PostgresContainer  # noqa: PLC0415 - only where an engine answers
    from testcontainers.rabbitmq import RabbitMqContainer  # noqa: PLC0415
    from testcontainers.redis import RedisContainer  # noqa: PLC0415

    superuser_password, operator_password = secrets.token_hex(16), secrets.token_hex(16)
    with (
        PostgresContainer(
            "postgres:17", username="postgres", password=superuser_password, dbname="postgres"
        ) as postgres,
        RabbitMqContainer("rabbitmq:4-management", username="operator", password=operator_password) as rabbitmq,
        RedisContainer("redis:8") as redis,
    ):
        for vhost in vhosts:
            for command in (f"add_vhost {vhost}", f"set_permissions -p {vhost} operator .* .* .*"):
                _require_success(rabbitmq.exec(f"rabbitmqctl {command}"))
        amqp = f"{rabbitmq.get_container_host_ip()}:{rabbitmq.get_exposed_port(5672)}"
        yield Servers(
            postgres_url=f"postgresql://postgres:{superuser_password}@{postgres.get_container_host_ip()}:{postgres.get_exposed_port(5432)}",
            amqp_urls=dict.fromkeys((*SERVICES, "operator"), f"amqp://operator:{quote(operator_password)}@{amqp}"),
            redis_url=f"redis://{redis.get_container_host_ip()}:{redis.get_exposed_port(6379)}",
            vhosts=vhosts,
            role_passwords=_role_passwords(),
        )


def _require_success(result: Any) -> None:
    if result.exit_code != 0:
        raise RuntimeError(f"rabbitmqctl failed: {result.output!r}")


def _make_template(servers: Servers) -> None:
    """One migrated database that every test's own is cloned from."""
    with psycopg.connect(f"{servers.postgres_url}/postgres", autocommit=True) as conn:
        conn.execute(f"CREATE DATABASE {TEMPLATE}")
    url = f"{servers.postgres_url}/{TEMPLATE}"
    migrate.migrate_up(url)
    migrate.set_passwords(url, dict(servers.role_passwords))
