"""One process of a stack: how it is started, how it is recognised again, how one knows that it is ready.

Each program is started by a small generated shell script, which records its pid, sets the environment meant for it,
and then becomes the program by `exec`: the pid on record is the program's own, whoever supervises it.
"""

import hashlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ops.files import write_private
from ops.home import Home

# What the supervisor and the shell add to an environment by themselves.
_NOT_THE_PROGRAMS = (
    "SUPERVISOR_ENABLED",
    "SUPERVISOR_SERVER_URL",
    "SUPERVISOR_PROCESS_NAME",
    "SUPERVISOR_GROUP_NAME",
    "OLDPWD",
)
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    # Answers None once the program is ready, else the reason why it is not.
    probe: Callable[[], str | None]
    directory: Path = Path("/")
    # Stands for what the program reads at its start and the script does not show: a new value asks for a restart.
    inputs: str = ""
    # What must be done while the program is down, just before it starts; run again before each start.
    before_start: Callable[[], None] = lambda: None
    stop_signal: str = "TERM"
    stop_seconds: int = 20

    @property
    def fingerprint(self) -> str:
        shown = repr((self.argv, sorted(self.environment.items()), str(self.directory), self.inputs))
        return hashlib.sha256(shown.encode()).hexdigest()


def script_path(home: Home, name: str) -> Path:
    return home.run / f"{name}.sh"


def log_path(home: Home, name: str) -> Path:
    return home.logs / f"{name}.log"


def render_script(home: Home, program: Program) -> str:
    """The start script. Word 22 of /proc/PID/stat, the start time, tells this process from a later one of its pid."""
    exports = [
        f"export {name}={shlex.quote(value)}" for name, value in sorted({"PATH": _PATH, **program.environment}.items())
    ]
    return "\n".join(
        [
            "#!/bin/sh",
            "set -eu",
            "read -r line < /proc/$$/stat",
            "set -- $line",
            "shift 21",
            f'echo "$$ $1" > {shlex.quote(str(home.run / f"{program.name}.born"))}',
            f"echo $$ > {shlex.quote(str(home.pids / program.name))}",
            *exports,
            f"cd {shlex.quote(str(program.directory))}",
            f"unset {' '.join(_NOT_THE_PROGRAMS)}",
            f"exec {shlex.join(program.argv)}",
            "",
        ]
    )


def write_script(home: Home, program: Program) -> Path:
    path = script_path(home, program.name)
    write_private(path, render_script(home, program), mode=0o700)
    return path


def last_lines(home: Home, name: str, count: int = 20) -> str:
    path = log_path(home, name)
    if not path.exists():
        return "(no log yet)"
    text = path.read_bytes()[-65536:].decode(errors="replace")
    return "\n".join(text.splitlines()[-count:])
