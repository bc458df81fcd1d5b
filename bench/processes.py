"""Programs under measurement: started, waited for, accounted for, and stopped with the block that started them."""

import asyncio
import os
import subprocess
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from tests.harness.patience import eventually

_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STOP_S: Final = 15
_LOGS: Final = Path(__file__).parents[1] / ".local" / "bench" / "logs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """Seconds of processor and megabytes of memory, of a program with its children."""

    cpu_s: float
    rss_mb: float


@asynccontextmanager
async def running(
    command: Sequence[str | Path],
    *,
    environment: Mapping[str, str] | None = None,
    folder: Path | None = None,
    name: str = "",
) -> AsyncGenerator[int, None]:
    """Its process id. Its output goes nowhere, as fast as that is; its complaints to `.local/bench/logs`."""
    _LOGS.mkdir(parents=True, exist_ok=True)
    with (_LOGS / f"{name or Path(command[0]).name}.log").open("wb") as said:
        process = await asyncio.create_subprocess_exec(
            *map(str, command),
            env={**os.environ, **(environment or {})},
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            yield process.pid
        finally:
            if process.returncode is None:
                process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), _STOP_S)
                except TimeoutError:
                    os.killpg(process.pid, 9)  # its own session: nothing else is in this group
                    await process.wait()


async def answering(url: str, pid: int, *, within_s: float = 60) -> None:
    """Wait until this process answers there, whatever it says. A process that has ended is not waited for."""
    async with httpx.AsyncClient(timeout=2) as client:

        async def answers() -> bool:
            if _has_ended(pid):
                raise RuntimeError(f"what was to answer at {url} has ended; see {_LOGS}")
            try:
                await client.get(url)
            except httpx.HTTPError:
                return False
            return True

        await eventually(answers, within_s=within_s, every_s=0.1)


def _has_ended(pid: int) -> bool:
    try:
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] == "Z"
        )
    except FileNotFoundError:
        return True


def spent(*pids: int) -> Spent:
    parts = [_spent(pid) for pid in pids]
    return Spent(cpu_s=sum(part.cpu_s for part in parts), rss_mb=sum(part.rss_mb for part in parts))


def _spent(pid: int) -> Spent:
    """With the children it has now. One that has just ended counts nothing."""
    process = Path(f"/proc/{pid}")
    try:
        fields = (process / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        status = (process / "status").read_text(encoding="ascii", errors="replace").splitlines()
        children = (process / f"task/{pid}/children").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return Spent(cpu_s=0, rss_mb=0)
    rss_kb = next((int(line.split()[1]) for line in status if line.startswith("VmRSS")), 0)
    below = spent(*map(int, children)) if children else Spent(cpu_s=0, rss_mb=0)
    return Spent(cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS + below.cpu_s, rss_mb=rss_kb / 1024 + below.rss_mb)
