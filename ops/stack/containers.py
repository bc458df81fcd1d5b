"""The containers of one Compose project, as the Docker engine sees them; no compose file is needed to look at them."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from libs.common.clock import system_clock
from ops.failure import Failure
from ops.stack.supervisor import Process, ProcessState

_PROJECT, _SERVICE = "com.docker.compose.project", "com.docker.compose.service"
_STATES: dict[str, ProcessState] = {
    "running": "RUNNING",
    "restarting": "BACKOFF",
    "exited": "EXITED",
    "dead": "FATAL",
    "removing": "STOPPING",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    id: str
    service: str
    state: str
    exit_status: int
    pid: int
    started_at: str
    # Why the engine could not start it, as far as the engine is to blame.
    error: str
    # None without a health check; its reason is what the check said last.
    health: str | None
    reason: str
    ports: frozenset[int]

    @property
    def name(self) -> str:
        """As in a native stack: gateway-1 is the service `gateway`, gateway-2 the service `gateway-2`."""
        return self.service if self.service.rpartition("-")[2].isdigit() else f"{self.service}-1"

    @property
    def finding(self) -> str | None:
        """Why it is not ready, or None."""
        if self.state != "running":
            return self.error or f"its container is {self.state}, the last exit status was {self.exit_status}"
        return None if self.health in (None, "healthy") else self.reason or "starting"

    @property
    def has_done_its_work(self) -> bool:
        """Of one that is meant to end, such as the migrations."""
        return self.state == "exited" and self.exit_status == 0

    @property
    def process(self) -> Process:
        running_s = system_clock() - datetime.fromisoformat(self.started_at) if self.pid else None
        return Process(
            name=self.name,
            state=_STATES.get(self.state, "STOPPED"),
            pid=self.pid,
            exit_status=self.exit_status,
            running_s=int(running_s.total_seconds()) if running_s else 0,
        )


def find_containers(project: str) -> list[Container]:
    ids = _ask("ps", "--all", "--quiet", "--no-trunc", "--filter", f"label={_PROJECT}={project}").split()
    if not ids:
        return []
    # One that has gone since it was listed is left out of the answer and makes the command fail.
    found = subprocess.run(("docker", "inspect", *ids), check=False, capture_output=True, text=True)
    described: list[dict[str, Any]] = json.loads(found.stdout or "[]")
    return sorted((_read(one) for one in described), key=lambda container: container.name)


def find_volumes(project: str) -> list[str]:
    return _ask("volume", "ls", "--quiet", "--filter", f"label={_PROJECT}={project}").split()


def remove_volumes(names: Sequence[str]) -> None:
    if names:
        _ask("volume", "rm", *names)


def last_words(container: Container, count: int = 20) -> str:
    said = subprocess.run(
        ("docker", "logs", "--tail", str(count), container.id),
        check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    return said.stdout.strip() or "(no log yet)"


def _ask(*arguments: str) -> str:
    done = subprocess.run(("docker", *arguments), check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failure(f"The Docker engine would not do `docker {arguments[0]}`: {done.stderr.strip()}")
    return done.stdout


def _read(described: dict[str, Any]) -> Container:
    state = described["State"]
    health: dict[str, Any] = state.get("Health") or {}
    answers: list[dict[str, Any]] = health.get("Log") or [{"Output": ""}]
    published: dict[str, list[dict[str, str]] | None] = described["NetworkSettings"].get("Ports") or {}
    return Container(
        id=described["Id"],
        service=described["Config"]["Labels"][_SERVICE],
        state=state["Status"],
        exit_status=state["ExitCode"],
        pid=state["Pid"],
        started_at=state["StartedAt"],
        error=state["Error"],
        health=health.get("Status"),
        reason=_shorten(answers[-1]["Output"]),
        ports=frozenset(int(one["HostPort"]) for bindings in published.values() for one in bindings or ()),
    )


def _shorten(output: str) -> str:
    """The failing checks of a readiness report, else what was said."""
    try:
        failing = [str(name) for name in json.loads(output)["failed"]]
    except (ValueError, KeyError, TypeError):
        return output.strip()
    return f"not ready: {', '.join(failing)}" if failing else ""
