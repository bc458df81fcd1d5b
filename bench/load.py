"""Load that is not the bottleneck: wrk where many simple requests are sent, a client over bare sockets elsewhere.

wrk is written in C and sends 50,000 requests a second with a tenth of a core. It cannot keep to a rate or send bodies
made beforehand in order; for those there is `Line`, one kept-alive connection that writes prepared bytes and lets
httptools read the answer: about 15,000 requests a second of a core, several times what any contender answers.
"""

import asyncio
import json
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlsplit

import httptools

from bench.processes import Spent

_WRK_SCRIPT: Final = """
local requests, at = {}, 0
function init(args)
  for line in io.lines(args[1]) do
    requests[#requests + 1] = wrk.format("GET", wrk.path, { ["Authorization"] = "Bearer " .. line })
  end
end
function request()
  at = at % #requests + 1
  return requests[at]
end
function done(summary, latency)
  io.write(string.format(
    'RESULT {"requests":%d,"seconds":%f,"errors":%d,"p50_ms":%f,"p95_ms":%f,"p99_ms":%f}\\n',
    summary.requests, summary.duration / 1e6,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
      + summary.errors.timeout,
    latency:percentile(50) / 1000, latency:percentile(95) / 1000, latency:percentile(99) / 1000))
end
"""


class NotAnswered(Exception):
    """Something else than the answers that were to be measured came back; its text is what."""


@dataclass(slots=True, kw_only=True)
class Outcome:
    waits_ms: list[float] = field(default_factory=list[float])
    statuses: Counter[int] = field(default_factory=Counter[int])
    took_s: float = 0

    @property
    def per_s(self) -> float:
        return len(self.waits_ms) / self.took_s

    def figures(self) -> dict[str, float]:
        return {"per_s": self.per_s, **latencies(self.waits_ms)}

    def costing(self, before: Spent, after: Spent) -> dict[str, float]:
        """The figures, with what a thousand answers cost."""
        cpu_s_per_1000 = (after.cpu_s - before.cpu_s) / len(self.waits_ms) * 1000
        return {**self.figures(), "cpu_s_per_1000": cpu_s_per_1000, "rss_mb": after.rss_mb}

    def require(self, status: int) -> None:
        if set(self.statuses) != {status}:
            raise NotAnswered(f"answers were {dict(self.statuses)}")


def latencies(waits_ms: Sequence[float]) -> dict[str, float]:
    cuts = statistics.quantiles(waits_ms, n=100, method="inclusive")
    return {"p50_ms": cuts[49], "p95_ms": cuts[94], "p99_ms": cuts[98]}


def require_wrk() -> str:
    found = shutil.which("wrk")
    if found is None:
        raise SystemExit("wrk sends the load and was not found. Debian: apt-get install wrk")
    return found


async def wrk(url: str, *, tokens: Sequence[str], connections: int, seconds: int) -> dict[str, float]:
    """GET as the bearers of these tokens, in turns; NotAnswered if any answer was none or an error."""
    with tempfile.TemporaryDirectory() as folder:
        script, listed = Path(folder) / "script.lua", Path(folder) / "tokens"
        script.write_text(_WRK_SCRIPT, encoding="ascii")
        listed.write_text("\n".join(tokens), encoding="ascii")
        command = (require_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s", "-s", str(script))
        process = await asyncio.create_subprocess_exec(*command, url, "--", str(listed), stdout=subprocess.PIPE)
        said = (await process.communicate())[0].decode()
    found = re.search(r"RESULT (\{.*\})", said)
    if found is None:
        raise NotAnswered(said)
    result = json.loads(found[1])
    if result["errors"] or not result["requests"]:
        raise NotAnswered(said)
    return {
        "per_s": result["requests"] / result["seconds"],
        "requests": result["requests"],
        **{name: result[name] for name in ("p50_ms", "p95_ms", "p99_ms")},
    }


class Line(asyncio.Protocol):
    """One connection: a request is written as it is, the answer waited for."""

    def __init__(self) -> None:
        self._transport: asyncio.WriteTransport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._body: list[bytes] = []

    @classmethod
    async def open(cls, url: str) -> "Line":
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(cls, address.hostname or "", address.port or 80))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is none by its class

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())
        self._parser = httptools.HttpResponseParser(self)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the connection was closed"))

    async def ask(self, request: bytes) -> int:
        """The answer's status."""
        assert self._transport is not None
        self._body.clear()
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer

    @property
    def body(self) -> bytes:
        """Of the last answer."""
        return b"".join(self._body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


def as_bytes(method: str, path: str, *, headers: dict[str, str], body: bytes = b"") -> bytes:
    """A request as `Line` writes it."""
    lines = [f"{method} {path} HTTP/1.1", "Host: bench", *(f"{name}: {value}" for name, value in headers.items())]
    if body or method != "GET":
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


async def closed_loop(url: str, requests: Iterator[bytes], *, connections: int, seconds: float) -> Outcome:
    """As many at once as there are connections, each sending its next request when it has its answer."""
    outcome = Outcome()
    async with AsyncExitStack() as stack:
        lines = [await Line.open(url) for _ in range(connections)]
        for line in lines:
            stack.callback(line.close)
        started = time.perf_counter()

        async def send(line: Line) -> None:
            for request in requests:
                began = time.perf_counter()
                outcome.statuses[await line.ask(request)] += 1
                ended = time.perf_counter()
                outcome.waits_ms.append((ended - began) * 1000)
                if ended - started >= seconds:
                    return

        async with asyncio.TaskGroup() as group:
            for line in lines:
                group.create_task(send(line))
        outcome.took_s = time.perf_counter() - started
    return outcome


async def at_rate(url: str, requests: Iterator[bytes], *, per_s: float, seconds: float) -> Outcome:
    """Evenly spaced, whatever the answers take: a slow answer delays nobody behind it."""
    outcome = Outcome()
    idle: list[Line] = []
    opened: list[Line] = []
    started = time.perf_counter()

    async def send(due: float, request: bytes) -> None:
        line = idle.pop() if idle else await Line.open(url)
        if line not in opened:
            opened.append(line)
        outcome.statuses[await line.ask(request)] += 1
        outcome.waits_ms.append((time.perf_counter() - due) * 1000)
        idle.append(line)

    async with asyncio.TaskGroup() as group:
        for number in range(int(per_s * seconds)):
            due = started + number / per_s
            await asyncio.sleep(max(0, due - time.perf_counter()))
            # From when it is really sent: a late timer of this client says nothing of who answers.
            group.create_task(send(time.perf_counter(), next(requests)))
    outcome.took_s = time.perf_counter() - started
    for line in opened:
        line.close()
    return outcome
