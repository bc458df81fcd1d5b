"""A RabbitMQ of our own, with Erlang's name service beside it, both on the loopback interface alone."""

import hashlib
import secrets
from pathlib import Path

from ops.engines.packages import Programs
from ops.engines.probes import broker_answers, port_answers
from ops.files import write_private
from ops.home import Home
from ops.programs import Program

# The node is called the same everywhere: a name service of its own keeps several stacks on one machine apart.
_NODE = "venture@localhost"
_CONFIG = """\
listeners.tcp.local = 127.0.0.1:{port}
load_definitions = {definitions}
max_message_size = 1048576
disk_free_limit.absolute = 1GB
raft.wal_max_size_bytes = 67108864
log.console = true
log.console.level = info
log.console.use_colors = off
log.connection.level = error
log.file = false
"""


def describe_epmd(programs: Programs, *, port: int) -> Program:
    return Program(
        name="epmd-1",
        argv=(str(programs.epmd), "-port", str(port), "-address", "127.0.0.1"),
        environment={},
        probe=port_answers(port),
        stop_seconds=5,
    )


def describe(home: Home, programs: Programs, *, port: int, dist: int, epmd: int, definitions: str) -> Program:
    base = home.data / "rabbitmq"
    return Program(
        name="rabbitmq-1",
        argv=(str(programs.rabbitmq),),
        environment={
            "HOME": str(base),
            "ERL_EPMD_PORT": str(epmd),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": _NODE,
            "RABBITMQ_DIST_PORT": str(dist),
            "RABBITMQ_MNESIA_BASE": str(base / "mnesia"),
            "RABBITMQ_LOG_BASE": str(base),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "enabled_plugins"),
            # The system's own settings files must not reach this instance.
            "RABBITMQ_CONF_ENV_FILE": str(base / "none"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(base / "advanced.config"),
            "ERL_CRASH_DUMP_SECONDS": "0",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # With this the start script becomes the Erlang machine by `exec` instead of waiting for it as its child.
            "detached": "true",
        },
        probe=broker_answers(port),
        before_start=lambda: _prepare(base, port, definitions),
        inputs=hashlib.sha256(definitions.encode()).hexdigest(),
        stop_seconds=30,
    )


def _prepare(base: Path, port: int, definitions: str) -> None:
    base.mkdir(mode=0o700, exist_ok=True)
    write_private(base / "definitions.json", definitions)
    write_private(base / "rabbitmq.conf", _CONFIG.format(port=port, definitions=base / "definitions.json"))
    for empty_list in ("enabled_plugins", "advanced.config"):
        write_private(base / empty_list, "[].\n")
    cookie = base / ".erlang.cookie"
    if not cookie.exists():
        write_private(cookie, secrets.token_hex(20), mode=0o400)
