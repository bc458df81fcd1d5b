"""JavaScript clients of `tests/clients`: installed from their lock file on first use, run as programs."""

import asyncio
import fcntl
from pathlib import Path
from typing import Final

CLIENTS: Final = Path(__file__).parents[1] / "clients"


async def run_client(client: str, program: str, stdin: bytes) -> bytes:
    """Run `tests/clients/<client>/<program>` with node; return what it printed."""
    folder = CLIENTS / client
    await asyncio.to_thread(_install_lock, folder)
    return await _output("node", program, folder=folder, stdin=stdin)


def _install_lock(folder: Path) -> None:
    with (folder / "package-lock.json").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two workers would otherwise install at once
        if not (folder / "node_modules" / ".package-lock.json").exists():
            asyncio.run(_output("npm", "ci", "--no-audit", "--no-fund", folder=folder))


async def _output(*command: str, folder: Path, stdin: bytes = b"") -> bytes:
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate(stdin)
    if process.returncode != 0:
        raise RuntimeError(f"{command[0]} ended with {process.returncode}")
    return out
