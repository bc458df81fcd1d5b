"""Moving a Compose stack from one image tag to another, replica by replica, and back.

No accepted request is lost: a replica that is replaced finishes what it has in hand (its grace period is longer than an
answer may take), what it consumed and did not ack is delivered again, and the next replica is touched only once the
former is ready. With two gateways somebody always answers; with one, clients are refused for seconds and come again.
"""

import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ops.engines.definitions import SERVICES
from ops.failure import Failure
from ops.files import write_private

# The gateway last: what it calls is new by then, and knows what the old gateway asks (expand first, contract later).
ORDER: Sequence[str] = ("agents", "metering", "billing", "gateway")
DEVELOPMENT_TAG = "latest"
_UP = ("up", "--detach", "--no-build", "--no-deps", "--wait", "--wait-timeout=180")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """`command` and `environment` reach the project; `replicas` are its services, such as gateway and gateway-2."""

    command: Callable[..., Sequence[str]]
    environment: Mapping[str, str]
    replicas: Sequence[str]
    record: Path
    say: Callable[[str], None]

    def release(self, tag: str) -> None:
        """Build what has no image of this tag, migrate, replace each replica. One that fails turns all back."""
        before = self.history()[-1]
        if tag == before:
            raise Failure(f"{tag} is what runs already.")
        if not self._has_images(tag):
            self.say(f"Building the images of {tag}.")
            self._compose(tag, "build", "--quiet")
        self.say(f"Migrating to {tag}.")
        self._compose(tag, "run", "--rm", "--no-deps", "--no-TTY", "migrate")
        try:
            self._replace(tag)
        except Failure as failure:
            self.say(f"{failure} Going back to {before}.")
            self._replace(before)
            raise
        self._remember([*self.history(), tag])

    def rollback(self) -> str:
        """Back to the tag before, on the schema as it is: a release runs on the schema of the next one."""
        history = self.history()
        if len(history) < 2:  # noqa: PLR2004 - what runs and what ran before
            raise Failure("There was no release before this one.")
        self._replace(history[-2])
        self._remember(history[:-1])
        return history[-2]

    def history(self) -> list[str]:
        """Tags in the order they were released, the last one running."""
        return json.loads(self.record.read_text()) if self.record.exists() else [DEVELOPMENT_TAG]

    def _replace(self, tag: str) -> None:
        for name in sorted(self.replicas, key=lambda name: (ORDER.index(name.partition("-")[0]), name)):
            self._compose(tag, *_UP, name)
            self.say(f"  {name} runs {tag}")

    def _has_images(self, tag: str) -> bool:
        prefix = self.environment.get("IMAGE_PREFIX") or "venture"
        names = [f"{prefix}-{name}:{tag}" for name in (*SERVICES, "operations")]
        return subprocess.run(("docker", "image", "inspect", *names), check=False, capture_output=True).returncode == 0

    def _compose(self, tag: str, *arguments: str) -> None:
        environment = {**self.environment, "IMAGE_TAG": tag}
        command = self.command(*arguments)
        done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failure(f"Compose could not do `{arguments[0]}` with {tag}: {done.stderr.strip()[-1500:]}")

    def _remember(self, history: Sequence[str]) -> None:
        write_private(self.record, json.dumps(history))
