"""How a running stack is, as a table for people."""

from rich.console import Console
from rich.table import Table

from ops.stack.stack import Stack
from ops.stack.supervisor import ALIVE, Process


def print_status(stack: Stack) -> bool:
    """Print one row for each process; True if all are ready."""
    findings = stack.native.findings()
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "state", "pid", "up for", "port", "ready"):
        table.add_column(heading)
    processes = sorted(stack.native.processes(), key=lambda process: process.name)
    for process in processes:
        reason = findings.get(process.name, "not running")
        ready = "[green]yes[/]" if reason is None else f"[red]{reason}[/]"
        table.add_row(
            process.name, _state(process), str(process.pid or ""), _age(process), _port(stack, process), ready
        )
    Console(highlight=False, soft_wrap=True).print(table)
    return all(findings.get(process.name, "down") is None for process in processes)


def _state(process: Process) -> str:
    return process.state.lower() if process.state in ALIVE else f"[red]{process.state.lower()}[/]"


def _age(process: Process) -> str:
    minutes, seconds = divmod(process.running_s, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if process.pid else ""


def _port(stack: Stack, process: Process) -> str:
    return ", ".join(str(port) for port in stack.native.ports_of(process.name))
