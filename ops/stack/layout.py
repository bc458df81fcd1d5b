"""Which processes a stack is made of: the engines, the stand-ins for the outside world, the services' replicas."""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from ops.engines import postgresql, rabbitmq, redis_server
from ops.engines.definitions import OPERATOR, SERVICES, render_definitions
from ops.engines.packages import Programs
from ops.home import ROOT, Home
from ops.port_blocks import claim_block
from ops.programs import Program
from ops.stack.environments import VHOST, Addresses, machine_environment, port_name, service_environment
from ops.stack.health import http_answers
from ops.stack.scale import replicas

_ENGINE_PORTS = {"postgres": 55432, "rabbitmq": 55672, "rabbitmq-dist": 55673, "rabbitmq-epmd": 55674, "redis": 56379}
_STAND_IN_PORTS = {"stripe": 8420, "mailbox-smtp": 8025, "mailbox-http": 8026}
_FIRST_SERVICE_PORT, _FIRST_METRICS_PORT = 8000, 9100
# Which program listens on a port whose name is not the program's own.
_LISTENERS = {
    "rabbitmq-dist": "rabbitmq-1",
    "rabbitmq-epmd": "epmd-1",
    "mailbox-smtp": "mailbox-1",
    "mailbox-http": "mailbox-1",
}


def usual_ports(home: Home, scale: Mapping[str, int]) -> dict[str, int]:
    """The documented ports for the developer's stack; for any other home a block of its own, so that both can run."""
    ports = _ENGINE_PORTS | _STAND_IN_PORTS
    for service, number in replicas(scale):
        offset = 10 * (number - 1) + SERVICES.index(service)
        ports[port_name(service, number)] = _FIRST_SERVICE_PORT + offset
        ports[f"{port_name(service, number)}-metrics"] = _FIRST_METRICS_PORT + offset
    if home.is_default:
        return ports
    first = claim_block(home)
    return {name: first + index for index, name in enumerate(ports)}


def listener(port: str) -> str:
    """The program that listens on the port of this name."""
    if port in _LISTENERS:
        return _LISTENERS[port]
    name = port.removesuffix("-metrics")
    return name if name.rpartition("-")[2].isdigit() else f"{name}-1"


def engines(home: Home, found: Programs, where: Addresses) -> list[Program]:
    """In the order in which to start them: PostgreSQL last, since its data may first have to be made."""
    ports, values = where.ports, where.values
    passwords = {user: values[f"{user.upper()}_AMQP_PASSWORD"] for user in (OPERATOR, *SERVICES)}
    definitions = render_definitions(vhosts=[VHOST], passwords=passwords)
    return [
        rabbitmq.describe_epmd(found, port=ports["rabbitmq-epmd"]),
        rabbitmq.describe(
            home,
            found,
            port=ports["rabbitmq"],
            dist=ports["rabbitmq-dist"],
            epmd=ports["rabbitmq-epmd"],
            definitions=definitions,
        ),
        redis_server.describe(home, found, port=ports["redis"], password=values["REDIS_PASSWORD"]),
        postgresql.describe(home, found, port=ports["postgres"], password=values["POSTGRES_PASSWORD"]),
    ]


def stand_ins(home: Home, where: Addresses) -> list[Program]:
    """The Stripe emulator and the mailbox, which run whether or not the services are pointed at them."""
    return [_stripe(home, where), _mailbox(home, where)]


def _stripe(home: Home, where: Addresses) -> Program:
    return Program(
        name="stripe-1",
        argv=(
            sys.executable, "-m", "devkit.stripe",
            "--port", str(where.ports["stripe"]),
            "--state", str(home.data / "stripe.db"),
            "--webhook-url", f"{where.http('billing')}/webhooks/stripe",
            "--webhook-secret", where.values["STRIPE_WEBHOOK_SECRET"],
            "--seed-plans", str(ROOT / "config" / "plans.toml"),
        ),
        environment=machine_environment(),
        directory=ROOT,
        inputs=source_digest("devkit/stripe", "devkit/clock.py", "config", "uv.lock"),
        probe=http_answers(f"{where.http('stripe')}/_emulator/health"),
    )  # fmt: skip


def _mailbox(home: Home, where: Addresses) -> Program:
    return Program(
        name="mailbox-1",
        argv=(
            sys.executable, "-m", "devkit.mailbox",
            "--smtp-port", str(where.ports["mailbox-smtp"]),
            "--http-port", str(where.ports["mailbox-http"]),
            "--state", str(home.data / "mailbox.db"),
        ),
        environment=machine_environment(),
        directory=ROOT,
        inputs=source_digest("devkit/mailbox", "devkit/mailbox.py", "devkit/clock.py", "uv.lock"),
        probe=http_answers(f"{where.http('mailbox-http')}/api/v1/info"),
    )  # fmt: skip


def services(home: Home, where: Addresses, scale: Mapping[str, int]) -> list[Program]:
    return [_service(home, service, number, where) for service, number in replicas(scale)]


def _service(home: Home, service: str, number: int, where: Addresses) -> Program:
    return Program(
        name=f"{service}-{number}",
        argv=(sys.executable, "-m", f"services.{service}.main", "all"),
        environment={
            **service_environment(service, number, where),
            "DISK_PATHS": ",".join(str(path) for path in home.disks),
        },
        directory=ROOT,
        inputs=source_digest("libs", f"services/{service}", "config", "uv.lock"),
        probe=http_answers(f"{where.http(port_name(service, number))}/health/ready"),
    )


def source_digest(*parts: str) -> str:
    """Stands for the code a program runs, so that `make up` after an edit restarts what the edit touches."""
    digest = hashlib.sha256()
    for path in sorted(_files(ROOT / part for part in parts)):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _files(roots: Iterable[Path]) -> list[Path]:
    found = [path for root in roots for path in ([root] if root.is_file() else root.rglob("*"))]
    return [path for path in found if path.is_file() and "__pycache__" not in path.parts]
