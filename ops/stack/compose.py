"""The stack as containers, for machines with a Docker engine. What is in them is described by deploy/compose.yaml."""

import shutil
import subprocess
from collections.abc import Mapping

from ops.failure import Failure
from ops.files import write_private
from ops.home import ROOT, Home
from ops.stack import dotenv, layout, state
from ops.stack.environments import Addresses

COMPOSE_FILE = ROOT / "deploy" / "compose.yaml"
_ENGINE_ANSWER_LIMIT_S = 10


def is_available() -> bool:
    """Whether there is something to run and an engine that answers."""
    if not COMPOSE_FILE.exists() or not shutil.which("docker"):
        return False
    try:
        asked = subprocess.run(("docker", "info"), check=False, capture_output=True, timeout=_ENGINE_ANSWER_LIMIT_S)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


class ComposeStack:
    def __init__(self, home: Home) -> None:
        self._home = home

    def up(self, values: Mapping[str, str], scale: Mapping[str, int]) -> Addresses:
        """The settings in force travel in a file of their own, since they may differ from `.env`."""
        where = Addresses(ports=layout.usual_ports(self._home, dict.fromkeys(scale, 1)), values=values)
        state.save(self._home, state.State(runner="compose", ports=dict(where.ports), values=dict(values)))
        scaling = [word for service, count in scale.items() for word in ("--scale", f"{service}={count}")]
        self._compose("up", "--detach", "--build", "--wait", "--remove-orphans", *scaling, values=values)
        return where

    def down(self) -> bool:
        self._compose("down", values=state.load(self._home).values)
        return True

    def is_running(self) -> bool:
        command = ("docker", "compose", "--file", COMPOSE_FILE, "ps", "--quiet", "--status", "running")
        asked = subprocess.run(command, check=False, capture_output=True)
        return asked.returncode == 0 and bool(asked.stdout.strip())

    def show_status(self) -> bool:
        self._compose("ps", values=state.load(self._home).values)
        return True

    def follow_logs(self, wanted: str) -> None:
        self._compose("logs", "--follow", "--tail", "20", *filter(None, [wanted]), values=state.load(self._home).values)

    def _compose(self, *arguments: str, values: Mapping[str, str]) -> None:
        settings = self._home.run / "compose.env"
        write_private(settings, "\n".join(dotenv.line(name, value) for name, value in values.items()) + "\n")
        command = ("docker", "compose", "--file", COMPOSE_FILE, "--env-file", settings, *arguments)
        if subprocess.run(command, check=False).returncode != 0:
            raise Failure("Docker Compose failed; its messages are above. `docker compose ps` shows what runs.")
