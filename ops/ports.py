"""Which TCP port each part of a stack listens on, and who holds one that is taken."""

import re
import socket
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ops.failure import Failure

_LISTENING = "0A"
_HIGHEST = 65535


@dataclass(slots=True)
class PortPlan:
    ports: dict[str, int] = field(default_factory=dict)
    # One finished sentence for each port that had to be another than the usual one.
    moved: list[str] = field(default_factory=list)


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        # Without this, connections closed a moment ago would make the port look taken; a listener still does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def plan_ports(
    usual: Mapping[str, int],
    *,
    fixed: Mapping[str, int],
    current: Mapping[str, int],
    running: Collection[str],
    free: Callable[[int], bool] = is_free,
) -> PortPlan:
    """A port for each name in `usual`.

    `fixed` ports were asked for and are used or refused; the `current` one is kept while it can be; else the usual
    one or the next that is free. A name in `running` already listens on its current port.
    """
    wanted = {name: fixed.get(name, current.get(name, port)) for name, port in usual.items()}
    plan = PortPlan()
    for name, port in wanted.items():
        if name in running and port == current.get(name):
            plan.ports[name] = port
    for name in fixed:
        if name in wanted and name not in plan.ports:
            plan.ports[name] = _exactly(name, wanted[name], plan, free)
    for name, port in wanted.items():
        if name not in plan.ports and port not in plan.ports.values() and free(port):
            plan.ports[name] = port
    for name, port in wanted.items():  # last, so that nobody moves onto a port that another one is about to have
        if name not in plan.ports:
            plan.ports[name] = _next_free(name, port, plan, free)
    return plan


def _exactly(name: str, wanted: int, plan: PortPlan, free: Callable[[int], bool]) -> int:
    if wanted in plan.ports.values():
        other = next(other for other, port in plan.ports.items() if port == wanted)
        raise Failure(f"{name} and {other} cannot both use port {wanted}. Set one of them to another port.")
    if not free(wanted):
        raise Failure(
            f"Port {wanted} was asked for {name}, but {holder(wanted) or 'another program'} holds it. "
            "Stop that, or choose another port."
        )
    return wanted


def _next_free(name: str, wanted: int, plan: PortPlan, free: Callable[[int], bool]) -> int:
    for port in range(wanted + 1, _HIGHEST):
        if port not in plan.ports.values() and free(port):
            plan.moved.append(f"Port {wanted} is taken, so {name} listens on {port}.")
            return port
    raise Failure(f"No free port from {wanted} up for {name}. Close what holds them, or choose another port.")


def holder(port: int) -> str | None:
    """Who listens on `port`, as far as this user may know, such as "nginx (pid 812)"."""
    sockets = {file for file, listening in _listeners().items() if listening == port}
    for process in Path("/proc").glob("[0-9]*"):
        if sockets & _open_files(process):
            return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def listening_on(pid: int) -> set[int]:
    """The ports that a process of ours listens on."""
    listeners = _listeners()
    return {listeners[file] for file in _open_files(Path(f"/proc/{pid}")) if file in listeners}


def _listeners() -> dict[str, int]:
    """The port of each listening socket, by the name it has among a process's open files."""
    tables = [path for name in ("tcp", "tcp6") if (path := Path("/proc/net") / name).exists()]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return {f"socket:[{row[9]}]": int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == _LISTENING}


def _open_files(process: Path) -> set[str]:
    """What a process has open; nothing for one that is not ours to look into, or that has just ended."""
    found: set[str] = set()
    with suppress(PermissionError, FileNotFoundError, ProcessLookupError):
        for entry in (process / "fd").iterdir():
            with suppress(FileNotFoundError):  # closed since it was listed
                found.add(str(entry.readlink()))
    return found


def port_setting(name: str) -> str:
    """The setting that fixes the port called `name`: GATEWAY_PORT for `gateway`."""
    return f"{re.sub('[^a-z0-9]', '_', name).upper()}_PORT"


def fixed_ports(names: Iterable[str], values: Mapping[str, str]) -> dict[str, int]:
    """The ports among `names` that the settings fix."""
    return {name: _read(setting, values[setting]) for name in names if values.get(setting := port_setting(name))}


def _read(setting: str, text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= _HIGHEST:
        raise Failure(f"{setting} must be a port number from 1 to {_HIGHEST}, not {text!r}.")
    return int(text)
