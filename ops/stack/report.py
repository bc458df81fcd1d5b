"""How the processes of a stack are, as a table for people."""

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from ops.stack.supervisor import ALIVE, Process


def print_processes(
    processes: Sequence[Process], *, findings: Mapping[str, str | None], ports: Mapping[str, Sequence[int]]
) -> None:
    """One row each. `findings` says why a running process is not ready (None: it is), `ports` where it listens."""
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "state", "pid", "up for", "port", "ready"):
        table.add_column(heading)
    for process in processes:
        reason = findings.get(process.name, "not running")
        ready = "[green]yes[/]" if reason is None else f"[red]{reason}[/]"
        listens = ", ".join(map(str, ports[process.name]))
        table.add_row(process.name, _state(process), str(process.pid or ""), _age(process), listens, ready)
    Console(highlight=False, soft_wrap=True).print(table)


def _state(process: Process) -> str:
    return process.state.lower() if process.state in ALIVE else f"[red]{process.state.lower()}[/]"


def _age(process: Process) -> str:
    minutes, seconds = divmod(process.running_s, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if process.pid else ""
