"""The stack as containers, for machines with a Docker engine. What is in them is described by deploy/compose.yaml.

Settings reach Compose through the environment of its process alone: nothing is written down, nothing has to be quoted,
and what a shell happens to export stays outside.
"""

import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from ops.engines.definitions import SERVICES
from ops.failure import Failure
from ops.home import Home
from ops.ports import fixed_ports, plan_ports
from ops.stack import layout, state
from ops.stack.compose_files import COMPOSE_FILE, DEVELOPMENT_FILE, compose_settings, render_replicas
from ops.stack.containers import Container, find_containers, find_volumes, last_words, remove_volumes
from ops.stack.database import seed_admin
from ops.stack.display import Display
from ops.stack.environments import Addresses
from ops.stack.release import Rollout
from ops.stack.report import print_processes
from ops.stack.supervisor import EXIT_CONFIG

_SOURCES = (
    ".dockerignore", "config", "deploy", "devkit", "libs", "migrations", "ops", "pyproject.toml", "services", "uv.lock",
)  # fmt: skip
_NOT_PUBLISHED = ("rabbitmq-dist", "rabbitmq-epmd", "mailbox-smtp")
_ENGINE_ANSWER_LIMIT_S = 10
_READY_LIMIT_S = 180
_CRASHING_LIMIT_S = 30


def is_available() -> bool:
    """Whether there is something to run and an engine that answers."""
    if not COMPOSE_FILE.exists() or not shutil.which("docker"):
        return False
    return all(_succeeds("docker", *question) for question in (("info",), ("compose", "version")))


def _succeeds(*command: str) -> bool:
    try:
        asked = subprocess.run(command, check=False, capture_output=True, timeout=_ENGINE_ANSWER_LIMIT_S)
    except subprocess.TimeoutExpired:
        return False
    return asked.returncode == 0


class ComposeStack:
    def __init__(self, home: Home, display: Display) -> None:
        self._home, self._display = home, display
        self.project = f"venture-{home.digest}"

    def up(self, values: Mapping[str, str], scale: Mapping[str, int]) -> Addresses:
        """Build what has changed, start what is down or different, and wait until all of it is ready."""
        where = self._place(values, scale)
        record = self._home.run / "compose.applied"
        if record.exists() and record.read_text() == self._fingerprint(where) and not self._unready():
            self._display.say("All of it was up already; nothing had to change.")
            return where
        record.unlink(missing_ok=True)
        self._display.say("Building the images that have changed; the first time this takes a minute or two.")
        self._compose("build", "--quiet", where=where)
        where = self._place(values, scale)  # once more: building takes long enough for somebody to take a port
        self._start(where)
        (self._home.run / "releases.json").unlink(missing_ok=True)  # what runs now is the working tree's
        seed_admin(where)
        record.write_text(self._fingerprint(where))
        return where

    def down(self) -> bool:
        """Stop and remove the containers, keep the volumes; False if nothing ran."""
        if not find_containers(self.project):
            return False
        with self._display.waiting("Stopping"):
            self._by_name("--progress", "quiet", "down", "--remove-orphans")
        return True

    def remove_data(self) -> None:
        remove_volumes(find_volumes(self.project))

    def is_running(self) -> bool:
        return is_available() and any(container.state == "running" for container in find_containers(self.project))

    def migrate(self, where: Addresses) -> str:
        """Apply pending migrations; what the migration runner said."""
        self._compose("build", "--quiet", "migrate", where=where)
        command = self._command("run", "--rm", "--no-deps", "--no-TTY", "migrate")
        done = subprocess.run(command, check=False, env=self._settings(where), stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            raise Failure("The migrations failed; nothing after the failing one was applied.")
        return done.stdout

    def show_status(self) -> bool:
        containers = self._lasting()
        print_processes(
            [container.process for container in containers],
            findings={container.name: container.finding for container in containers},
            ports={container.name: sorted(container.ports) for container in containers},
        )
        return not any(container.finding for container in containers)

    def follow_logs(self, wanted: str) -> None:
        containers = [found for found in find_containers(self.project) if found.name.startswith(wanted)]
        if not containers:
            raise Failure(f"No container's name begins with {wanted!r}. `make status` lists the names.")
        self._by_name("logs", "--follow", "--tail", "20", *(container.service for container in containers))

    def rollout(self, where: Addresses) -> Rollout:
        """Release and rollback between image tags."""
        return Rollout(
            command=self._command,
            environment=self._settings(where),
            replicas=[c.service for c in self._lasting() if c.service.partition("-")[0] in SERVICES],
            record=self._home.run / "releases.json",
            say=self._display.say,
        )

    def pid(self, program: str) -> int | None:
        found = (container.pid for container in find_containers(self.project) if container.name == program)
        return next(filter(None, found), None)

    def _place(self, values: Mapping[str, str], scale: Mapping[str, int]) -> Addresses:
        usual = {
            name: port
            for name, port in layout.usual_ports(self._home, scale).items()
            if name not in _NOT_PUBLISHED and not name.endswith("-metrics")
        }
        published = {port for container in find_containers(self.project) for port in container.ports}
        current = state.load(self._home).ports
        running = {name for name in usual if current.get(name) in published}
        plan = plan_ports(usual, fixed=fixed_ports(usual, values), current=current, running=running)
        for sentence in plan.moved:
            self._display.say(sentence)
        where = Addresses(ports={name: plan.ports[name] for name in usual}, values=values)
        state.save(self._home, state.State(runner="compose", ports=dict(where.ports), values=dict(values)))
        self._replicas_file.write_text(render_replicas(where, scale))
        return where

    @property
    def _replicas_file(self) -> Path:
        return self._home.run / "compose.replicas.yaml"

    def _fingerprint(self, where: Addresses) -> str:
        """Stands for everything that containers are made from. The ports say how many of each service there are."""
        parts = [layout.source_digest(*_SOURCES), json.dumps(compose_settings(where), sort_keys=True)]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _start(self, where: Addresses) -> None:
        before = find_containers(self.project)
        messages = self._home.logs / "compose.log"
        with self._display.waiting("Waiting for the containers") as waiting, messages.open("wb") as log:
            command = self._command("--progress", "quiet", "up", "--detach", "--no-build", "--remove-orphans")
            starting = subprocess.Popen(command, env=self._settings(where), stdout=log, stderr=log)
            told = {(container.id, container.started_at) for container in before}
            while not self._is_done(starting, before, told, waiting.seconds):
                time.sleep(0.3)

    def _is_done(
        self,
        starting: subprocess.Popen[bytes],
        before: Sequence[Container],
        told: set[tuple[str, str]],
        seconds: float,
    ) -> bool:
        """Whether all are ready; raises `Failure` when one never will be."""
        status = starting.poll()
        containers = [found for found in find_containers(self.project) if not found.has_done_its_work]
        self._tell_of_ready(containers, told, seconds)
        # Until Compose has replaced them, those that were there before say nothing about the settings in force now.
        old = {container.id for container in before} if status is None else set[str]()
        unready = [found for found in containers if found.finding and found.id not in old]
        if status or any(_is_hopeless(container, seconds) for container in unready):
            starting.terminate()
            starting.wait()
            raise Failure(self._explain(unready, status))
        return status == 0 and not unready

    def _tell_of_ready(self, containers: Sequence[Container], told: set[tuple[str, str]], seconds: float) -> None:
        for container in containers:
            key = (container.id, container.started_at)
            if container.health == "healthy" and key not in told:
                told.add(key)
                self._display.say(f"  {container.name} is ready after {seconds:.1f} s")

    def _explain(self, unready: Sequence[Container], status: int | None) -> str:
        """Those that ended or failed their checks come before those that had no chance to start."""
        guilty = [found for found in unready if found.exit_status or found.health == "unhealthy"] or unready
        shown = [
            f"{container.name} does not get ready: {container.finding}\n"
            f"The last lines of its log:\n{last_words(container)}"
            for container in guilty[:2]
        ]
        messages = (self._home.logs / "compose.log").read_text(errors="replace").strip() if status else ""
        advice = (
            "Mend what they say and run `make up` again; what runs already keeps running. "
            "`make logs` shows more, `make down` stops everything."
        )
        return "\n".join(filter(None, [*shown, messages, advice]))

    def _lasting(self) -> list[Container]:
        return [container for container in find_containers(self.project) if not container.has_done_its_work]

    def _unready(self) -> bool:
        containers = self._lasting()
        return not containers or any(container.finding for container in containers)

    def _settings(self, where: Addresses) -> dict[str, str]:
        """The environment for Compose: how this shell reaches its engine, and over it the settings in force."""
        # Attestations would give an unchanged image a new identity at each build, and so restart what runs.
        ours = {"IMAGE_PREFIX": self.project, "BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        return {**os.environ, **compose_settings(where), **ours}

    def _compose(self, *arguments: str, where: Addresses) -> None:
        if subprocess.run(self._command(*arguments), check=False, env=self._settings(where)).returncode != 0:
            raise Failure("Docker Compose failed; its messages are above. Mend what they say and run `make up` again.")

    def _command(self, *arguments: str) -> tuple[str, ...]:
        files = (COMPOSE_FILE, DEVELOPMENT_FILE, self._replicas_file)
        named = tuple(word for file in files for word in ("--file", str(file)))
        return ("docker", "compose", "--project-name", self.project, "--env-file", os.devnull, *named, *arguments)

    def _by_name(self, *arguments: str) -> None:
        """Commands for which the containers' own labels say enough."""
        command = ("docker", "compose", "--project-name", self.project, *arguments)
        if subprocess.run(command, check=False).returncode != 0:
            raise Failure("Docker Compose failed; its messages are above.")


def _is_hopeless(container: Container, seconds: float) -> bool:
    if container.state == "restarting":
        return container.exit_status == EXIT_CONFIG or seconds > _CRASHING_LIMIT_S
    return seconds > _READY_LIMIT_S
