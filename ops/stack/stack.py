"""One stack, however it is run: the interface for the command line, the demo and the end-to-end tests.

    stack = Stack(home=Path("/tmp/other"))
    stack.up(settings={"RATE_LIMIT_MAX_REQUESTS": "100000"}, scale="gateway=2")
    stack.environment()["GATEWAY_URL"]
    stack.down()

The environment of this process is not looked at: settings are those in the home's `.env` (made when missing) and those
handed to `up`. A stack in a home of its own has its own ports, data and secrets.
"""

import fcntl
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ops.failure import Failure
from ops.files import write_private
from ops.home import DEFAULT_HOME, Home
from ops.ports import port_setting
from ops.stack import compose, dotenv, layout, settings, state
from ops.stack.compose import ComposeStack
from ops.stack.display import Display
from ops.stack.environments import KNOWN_BY, Addresses, operator_environment, public_environment
from ops.stack.native import NativeStack
from ops.stack.release import Rollout
from ops.stack.runner import Runner
from ops.stack.scale import parse_scale

RUNNER_SETTING = "STACK_RUNNER"


class Stack:
    def __init__(self, home: Path | None = None, *, display: Display | None = None) -> None:
        self.home = Home.of(home)
        self._display = display or Display()

    def up(self, *, settings: Mapping[str, str] | None = None, scale: str | None = None) -> dict[str, str]:
        """Bring everything up, or into step with what is asked. Returns once all is ready; see `environment`."""
        self.home.create()
        with self._alone():
            values = self._settle(settings or {})
            asked = parse_scale(scale if scale is not None else values.get("SCALE", ""))
            return public_environment(self._runner(values).up(values, asked))

    def down(self) -> bool:
        """Stop everything and keep the data; False if nothing ran."""
        if not self.home.path.exists():
            return False
        self.home.create()
        with self._alone():
            return self._current_runner().down()

    def wipe(self) -> None:
        """Stop everything and remove all data; what the home holds besides the stack stays, and so does `.env`."""
        self.down()
        self._current_runner().remove_data()
        for directory in (self.home.data, self.home.run, self.home.logs, self.home.pids):
            shutil.rmtree(directory, ignore_errors=True)

    def environment(self) -> dict[str, str]:
        """Names and values with which to talk to the running stack. Raises `Failure` if it is not running."""
        if not self.is_running():
            raise Failure("The stack is not running. `make up` starts it.")
        remembered = state.load(self.home)
        return public_environment(Addresses(ports=remembered.ports, values=remembered.values))

    def operator_environment(self) -> dict[str, str]:
        """What `venture` is given: all of `environment`, and what only operators may have."""
        self.environment()
        remembered = state.load(self.home)
        return operator_environment(Addresses(ports=remembered.ports, values=remembered.values))

    def migrate(self) -> str:
        """Apply pending migrations to the running stack's database; what the migration runner said."""
        self.environment()
        remembered = state.load(self.home)
        return self._current_runner().migrate(Addresses(ports=remembered.ports, values=remembered.values))

    def rollout(self) -> Rollout:
        """Release and rollback between image tags. Raises `Failure` for a stack that has no images."""
        self.environment()
        remembered = state.load(self.home)
        runner = self._current_runner()
        if not isinstance(runner, ComposeStack):
            raise Failure("Only a stack on Compose has images; here `make up` runs what the checkout has.")
        return runner.rollout(Addresses(ports=remembered.ports, values=remembered.values))

    def show_status(self) -> bool:
        """Print how each part is; True if all are ready."""
        return self.is_running() and self._current_runner().show_status()

    def follow_logs(self, wanted: str = "") -> None:
        """Print what is logged until interrupted: of everything, or of what begins with `wanted`."""
        self._current_runner().follow_logs(wanted)

    def is_running(self) -> bool:
        return self.home.run.exists() and self._current_runner().is_running()

    def pid(self, service: str, number: int = 1) -> int:
        """The present pid of a replica, stand-in or engine, such as ("agents", 1) or ("postgres", 1)."""
        pid = self._current_runner().pid(f"{service}-{number}")
        if pid is None:
            raise Failure(f"{service}-{number} is not running.")
        return pid

    def _current_runner(self) -> Runner:
        """How it runs, or ran last."""
        return self._new_runner(state.load(self.home).runner)

    def _new_runner(self, name: state.Runner) -> Runner:
        return (ComposeStack if name == "compose" else NativeStack)(self.home, self._display)

    def _runner(self, values: Mapping[str, str]) -> Runner:
        """What runs now stays as it is; else what was asked for; else containers where an engine answers."""
        current = self._current_runner()
        if state.exists(self.home) and current.is_running():
            return current
        asked = values.get(RUNNER_SETTING) or (
            "compose" if self.home.is_default and compose.is_available() else "native"
        )
        if asked not in ("native", "compose"):
            raise Failure(f"{RUNNER_SETTING} is {asked!r}. It can be native or compose.")
        return self._new_runner(asked)

    def _settle(self, given: Mapping[str, str]) -> dict[str, str]:
        """Complete the settings file, then put what was given over it."""
        path = self.home.dotenv
        before = path.read_text() if path.exists() else ""
        after = settings.complete(before)
        if after != before or path.stat().st_mode & 0o077:
            write_private(path, after)
        if before != after:
            self._display.say(f"Wrote new secrets and keys to {path}.")
        return settings.effective(dotenv.parse(after), self._without_echoes(given), known=known_settings())

    def _without_echoes(self, given: Mapping[str, str]) -> dict[str, str]:
        """A shell that evaluated `make env` hands addresses of ours back to us. They are no choice of anybody's."""
        ports = state.load(self.home).ports
        own = {f"http://127.0.0.1:{ports[name]}" for name in ("gateway", "stripe") if name in ports}
        return {name: value for name, value in given.items() if value not in own}

    @contextmanager
    def _alone(self) -> Generator[None]:
        with (self.home.path / "lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                self._display.say(
                    f"Another command (pid {lock.read().strip()}) is at work on this stack. Waiting for it."
                )
                fcntl.flock(lock, fcntl.LOCK_EX)
            lock.truncate(0)
            lock.write(str(os.getpid()))
            lock.flush()
            yield


def known_settings() -> set[str]:
    ports = {port_setting(name) for name in layout.usual_ports(Home.of(DEFAULT_HOME), parse_scale(_MOST_REPLICAS))}
    return {*ports, RUNNER_SETTING, "SCALE", *(name for names in KNOWN_BY.values() for name in names)}


_MOST_REPLICAS = "gateway=20 billing=20 metering=20 agents=20"
