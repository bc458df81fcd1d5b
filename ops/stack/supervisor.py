"""The supervisor of one home: its generated configuration, and talking to it over its socket.

Every program is one generated script (see ops/programs.py), so the configuration names scripts and nothing secret.
"""

import http.client
import os
import socket
import subprocess
import sys
import time
import xmlrpc.client
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ops.failure import Failure
from ops.files import write_private
from ops.home import Home
from ops.processes import end_processes, started_at
from ops.programs import Program, log_path, script_path

ProcessState = Literal["STOPPED", "STARTING", "RUNNING", "BACKOFF", "STOPPING", "EXITED", "FATAL", "UNKNOWN"]
ALIVE: frozenset[ProcessState] = frozenset({"STARTING", "RUNNING"})
# Left by a service that refuses its settings: starting it again cannot help.
EXIT_CONFIG = 78
_START_LIMIT_S = 10
_END_LIMIT_S = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One program as its supervisor sees it. `exit_status` is that of its last end, 0 before any."""

    name: str
    state: ProcessState
    pid: int
    exit_status: int
    running_s: int


def render_config(home: Home, programs: Sequence[Program]) -> str:
    own_user = "user=root\n" if os.geteuid() == 0 else ""  # said aloud, or it warns about being root
    head = f"""\
[unix_http_server]
file={_literal(home.socket)}

[supervisord]
{own_user}pidfile={_literal(home.run / "supervisord.pid")}
logfile={_literal(home.logs / "supervisord.log")}
childlogdir={_literal(home.logs)}
directory=/
umask=022
identifier=venture-{home.digest}

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""
    return head + "".join(_section(home, program) for program in programs)


def _section(home: Home, program: Program) -> str:
    """Started on command only, in the right order; then kept alive, except after refusing its settings."""
    return f"""
[program:{program.name}]
command=/bin/sh "{_literal(script_path(home, program.name))}"
autostart=false
autorestart=unexpected
exitcodes={EXIT_CONFIG}
startsecs=1
startretries=60
stopsignal={program.stop_signal}
stopwaitsecs={program.stop_seconds}
killasgroup=true
redirect_stderr=true
stdout_logfile={_literal(Path(_literal(log_path(home, program.name))))}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=3
"""


def _literal(path: Path) -> str:
    """The file format expands what follows a percent sign; that of a program's log it expands twice."""
    return str(path).replace("%", "%%")


class Supervisor:
    """Commands to the running supervisor of a home. Any call may raise OSError once it is gone."""

    def __init__(self, home: Home) -> None:
        self._home = home
        # The protocol has no types of its own: what comes back is checked where it is read, in this class alone.
        self._rpc: Any = xmlrpc.client.ServerProxy("http://localhost", transport=_UnixTransport(home.socket)).supervisor

    def answers(self) -> bool:
        try:
            return bool(self._rpc.getState()["statename"] == "RUNNING")
        except (OSError, http.client.HTTPException):
            return False

    def launch(self) -> None:
        """Start the supervisor itself, in the background and with none of this command's environment."""
        config = self._home.run / "supervisord.conf"
        command = (sys.executable, "-m", "supervisor.supervisord", "-c", config)
        environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        started = subprocess.run(command, check=False, env=environment, cwd="/", capture_output=True, text=True)
        deadline = time.monotonic() + _START_LIMIT_S
        while not self.answers():
            if started.returncode != 0 or time.monotonic() > deadline:
                raise Failure(f"The supervisor did not start: {started.stderr.strip() or 'no answer'}")
            time.sleep(0.05)

    def configure(self, programs: Sequence[Program]) -> bool:
        """Write the configuration; True if it is another than before."""
        path = self._home.run / "supervisord.conf"
        config = render_config(self._home, programs)
        if path.exists() and path.read_text() == config:
            return False
        write_private(path, config)
        return True

    def reload(self) -> None:
        """Take up the written configuration: programs that are new, gone or described differently."""
        added, changed, removed = self._rpc.reloadConfig()[0]
        for name in (*changed, *removed):
            self._rpc.stopProcessGroup(name)
            self._rpc.removeProcessGroup(name)
        for name in (*added, *changed):
            self._rpc.addProcessGroup(name)

    def processes(self) -> dict[str, Process]:
        return {info["name"]: _process(info) for info in self._rpc.getAllProcessInfo()}

    def start(self, name: str) -> None:
        self._rpc.startProcess(name, False)  # noqa: FBT003 - positional by protocol: do not wait

    def stop(self, names: Sequence[str]) -> None:
        """Stop the named programs side by side, and wait until all are down."""
        known = self.processes()
        for name in names:
            if name in known and known[name].state in {"STARTING", "RUNNING", "BACKOFF"}:
                self._stop_one(name)
        deadline = time.monotonic() + _END_LIMIT_S
        while left := [name for name, found in self.processes().items() if name in names and found.pid]:
            if time.monotonic() > deadline:
                raise Failure(f"{', '.join(left)} would not stop. Try `make down` once more.")
            time.sleep(0.05)

    def _stop_one(self, name: str) -> None:
        try:
            self._rpc.stopProcess(name, False)  # noqa: FBT003 - positional by protocol: do not wait
        except xmlrpc.client.Fault as fault:
            if "NOT_RUNNING" not in str(fault.faultString):  # it ended by itself, which is what was wanted
                raise

    def shut_down(self) -> None:
        """End the supervisor, whose programs have been stopped."""
        pid = int(self._rpc.getPID())
        self._rpc.shutdown()
        deadline = time.monotonic() + _END_LIMIT_S
        while started_at(pid) is not None and time.monotonic() < deadline:
            time.sleep(0.05)

    def end_if_deaf(self) -> bool:
        """End a supervisor that runs but does not answer (its socket is gone, or it hangs); False if none does."""
        record = self._home.run / "supervisord.pid"
        if not record.exists() or not (pid := record.read_text().strip()).isdigit():
            return False
        record.unlink()
        command = Path(f"/proc/{pid}/cmdline")
        if not command.exists() or str(self._home.run / "supervisord.conf").encode() not in command.read_bytes():
            return False
        end_processes([int(pid)], patience_s=30)
        return True


def _process(info: dict[str, Any]) -> Process:
    running_s = int(info["now"]) - int(info["start"]) if info["pid"] else 0
    return Process(
        name=info["name"],
        state=info["statename"],
        pid=info["pid"],
        exit_status=info["exitstatus"],
        running_s=running_s,
    )


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: object) -> http.client.HTTPConnection:
        del host  # the socket is the address
        return _UnixConnection(self._path)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
