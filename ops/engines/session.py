"""The caller's side of throw-away engines: start the keeper, read where the engines are, let go of it at the end."""

import json
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ops.engines.definitions import OPERATOR
from ops.engines.postgresql import superuser_url
from ops.engines.redis_server import USER as REDIS_USER
from ops.failure import Failure
from ops.home import ROOT, Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Engines:
    """Where three running engines are, and how to get in. Made of plain values, so that it can cross processes."""

    postgres_port: int
    rabbitmq_port: int
    redis_port: int
    postgres_password: str
    redis_password: str
    # One for each AMQP user: the operator, who may do everything, and each service, with the rights it has in earnest.
    amqp_passwords: Mapping[str, str]
    vhosts: Sequence[str]
    # Directory of the files that hold each engine's pid: postgres-1, rabbitmq-1, redis-1.
    pids: str

    def postgres_url(self, database: str = "postgres") -> str:
        """As the superuser."""
        return superuser_url(self.postgres_port, self.postgres_password, database)

    def amqp_url(self, vhost: str, user: str = OPERATOR) -> str:
        return f"amqp://{user}:{self.amqp_passwords[user]}@127.0.0.1:{self.rabbitmq_port}/{vhost}"

    def redis_url(self, database: int = 0) -> str:
        return f"redis://{REDIS_USER}:{self.redis_password}@127.0.0.1:{self.redis_port}/{database}"

    def pid(self, engine: str) -> int:
        """The present pid of `postgres-1`, `rabbitmq-1` or `redis-1`. An engine that is killed is started again."""
        return int((Path(self.pids) / engine).read_text())


@contextmanager
def start_engines(home: Path | None = None, *, vhosts: Sequence[str], fast: bool = True) -> Generator[Engines]:
    """Run the three engines on free ports for as long as the block lasts.

    Installs what is missing where it may. Data lies under `home` (else in a directory of its own below the stack's
    home) and is removed at the end; what a run that was killed left behind is removed by the next one.
    Raises `Failure` when the engines cannot be had.
    """
    request = {"home": str(home) if home else None, "parent": str(Home.of().path), "vhosts": list(vhosts), "fast": fast}
    keeper = subprocess.Popen(
        (sys.executable, "-m", "ops.engines.keeper", json.dumps(request)),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the tests; the keeper ends when its standard input closes
    )
    if not (keeper.stdin and keeper.stdout):
        raise Failure("The keeper of the test engines has no pipes to talk through.")
    answer = ""
    try:
        answer = keeper.stdout.readline()
        if not answer:
            keeper.wait()
            raise Failure("The test engines did not start; the reason is above.")
        yield Engines(**json.loads(answer))
    finally:
        keeper.stdin.close()
        if not answer:
            keeper.terminate()  # it looks at its standard input only once everything runs
        keeper.wait()
        keeper.stdout.close()
