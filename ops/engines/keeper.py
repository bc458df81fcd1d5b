"""Keeps throw-away engines alive for exactly as long as its standard input stays open.

The caller holds the other end of that pipe. However it ends (done, Ctrl-C, killed), the kernel closes the pipe, and
the engines and their data go away. Should this process itself be killed, the lock on its directory falls free, and
the next keeper removes what was left there. An engine that dies meanwhile is started again.
"""

import json
import secrets
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import NoReturn

from ops.engines import postgresql, rabbitmq, redis_server
from ops.engines.definitions import OPERATOR, SERVICES, render_definitions
from ops.engines.packages import ensure_programs
from ops.engines.session import Engines
from ops.engines.throwaway import own_home
from ops.failure import Failure
from ops.home import Home
from ops.port_blocks import claim_block
from ops.ports import plan_ports
from ops.programs import Program, last_lines, log_path, write_script

_START_LIMIT_S = 90.0
_LOOK_EVERY_S = 0.2


@dataclass(slots=True)
class Keeper:
    home: Home
    programs: Sequence[Program]
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict[str, subprocess.Popen[bytes]])

    def start_all(self) -> None:
        """Start everything, then wait for everything: the slow ones get ready side by side."""
        for program in self.programs:
            self._start(program)
        deadline = time.monotonic() + _START_LIMIT_S
        for program in self.programs:
            self._wait_ready(program, deadline)

    def keep_until_let_go(self) -> None:
        while not select.select([sys.stdin], [], [], _LOOK_EVERY_S)[0]:
            for program in self.programs:
                if self.running[program.name].poll() is not None:
                    self._start(program)

    def end(self) -> None:
        """At once: the data is thrown away. SIGQUIT lets PostgreSQL give back its shared memory."""
        for name, process in self.running.items():
            process.send_signal(signal.SIGQUIT if name.startswith("postgres") else signal.SIGKILL)
        for process in self.running.values():
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, program: Program) -> None:
        program.before_start()
        with log_path(self.home, program.name).open("ab") as log:
            self.running[program.name] = subprocess.Popen(
                ("/bin/sh", write_script(self.home, program)),
                env={},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_ready(self, program: Program, deadline: float) -> None:
        while reason := program.probe():
            if self.running[program.name].poll() is not None or time.monotonic() > deadline:
                raise Failure(f"{program.name} did not start: {reason}\n{last_lines(self.home, program.name)}")
            time.sleep(0.05)


def describe(home: Home, *, vhosts: Sequence[str], fast: bool) -> tuple[Engines, list[Program]]:
    """The programs in the order in which to start them: first the one that takes longest to be ready."""
    found = ensure_programs()
    first = claim_block(home)
    usual = {name: first + index for index, name in enumerate(("postgres", "broker", "redis", "dist", "epmd"))}
    ports = plan_ports(usual, fixed={}, current={}, running=()).ports
    engines = Engines(
        postgres_port=ports["postgres"],
        rabbitmq_port=ports["broker"],
        redis_port=ports["redis"],
        postgres_password=secrets.token_hex(16),
        redis_password=secrets.token_hex(16),
        amqp_passwords={user: secrets.token_hex(16) for user in (OPERATOR, *SERVICES)},
        vhosts=vhosts,
        pids=str(home.pids),
    )
    definitions = render_definitions(vhosts=vhosts, passwords=engines.amqp_passwords)
    return engines, [
        rabbitmq.describe_epmd(found, port=ports["epmd"]),
        rabbitmq.describe(
            home, found, port=ports["broker"], dist=ports["dist"], epmd=ports["epmd"], definitions=definitions
        ),
        redis_server.describe(home, found, port=ports["redis"], password=engines.redis_password, fast=fast),
        postgresql.describe(home, found, port=ports["postgres"], password=engines.postgres_password, fast=fast),
    ]


def serve(home: Home, *, vhosts: Sequence[str], fast: bool) -> None:
    engines, programs = describe(home, vhosts=vhosts, fast=fast)
    keeper = Keeper(home, programs)
    try:
        keeper.start_all()
        print(json.dumps(asdict(engines)), flush=True)
        keeper.keep_until_let_go()
    finally:
        keeper.end()


def main() -> int:
    request = json.loads(sys.argv[1])
    named = Path(request["home"]) if request["home"] else None
    try:
        with own_home(named, parent=Path(request["parent"]) / "engines") as home:
            serve(home, vhosts=request["vhosts"], fast=request["fast"])
    except Failure as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


def _leave(_number: int, _frame: FrameType | None) -> NoReturn:
    sys.exit(1)


if __name__ == "__main__":
    # The default would end this process at once and leave the engines behind.
    signal.signal(signal.SIGTERM, _leave)
    sys.exit(main())
