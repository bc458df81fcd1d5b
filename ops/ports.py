"""Which TCP port each part of a stack listens on, and who holds one that is taken."""

import random
import re
import socket
from collections.abc import Callable, Collection, Mapping
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
    plan = PortPlan()
    for name in sorted(usual, key=lambda name: name not in fixed):
        if name in running and fixed.get(name, current.get(name)) == current.get(name) is not None:
            plan.ports[name] = current[name]
    for name, wanted in fixed.items():
        if name in usual and name not in plan.ports:
            plan.ports[name] = _exactly(name, wanted, plan, free)
    for name, wanted in usual.items():
        if name not in plan.ports:
            plan.ports[name] = _nearest(name, current.get(name, wanted), plan, free)
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


def _nearest(name: str, wanted: int, plan: PortPlan, free: Callable[[int], bool]) -> int:
    for port in range(wanted, _HIGHEST):
        if port not in plan.ports.values() and free(port):
            if port != wanted:
                plan.moved.append(f"Port {wanted} is taken, so {name} listens on {port}.")
            return port
    raise Failure(f"No free port from {wanted} up for {name}. Close what holds them, or choose another port.")


def random_ports(count: int) -> list[int]:
    """Free ports below the range from which the system serves outgoing connections."""
    candidates = random.SystemRandom().sample(range(20000, 32000), 40 * count)
    return [port for port in candidates if is_free(port)][:count]


def holder(port: int) -> str | None:
    """Who listens on `port`, as far as this user may know, such as "nginx (pid 812)"."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        if sockets & _open_files(process):
            return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return None


def _listening_inodes(port: int) -> set[str]:
    tables = [path for name in ("tcp", "tcp6") if (path := Path("/proc/net") / name).exists()]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return {row[9] for row in rows if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port}


def _open_files(process: Path) -> set[str]:
    """What a process has open; nothing for one that is not ours to look into, or that has just ended."""
    try:
        return {str(entry.readlink()) for entry in (process / "fd").iterdir()}
    except (PermissionError, FileNotFoundError, ProcessLookupError):
        return set()


def port_setting(name: str) -> str:
    """The setting that fixes the port called `name`: GATEWAY_PORT for `gateway`."""
    return f"{re.sub('[^a-z0-9]', '_', name).upper()}_PORT"
