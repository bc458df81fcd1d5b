"""Runs from the request to the finished answer a second, beside a server that keeps them in memory: `make bench-runs`.

Ours: `POST /v1/runs` with `Prefer: wait`, the offline model, everything durable: hold, row, events, charge. Theirs: a
graph of one node in LangGraph's in-memory server, `POST /runs/wait`, nothing stored beyond the process; its answer is
as long as ours, 1,500 characters, though nothing composes it. `runs` beside this measures the run engine alone: rate,
fairness, memory.
"""

import itertools
import os
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx
import orjson
import uvloop

from bench.frame import CPU, LATENCIES, OURS, PER_S, RSS, Contender, Figures, Report, alternate, at_least, at_most
from bench.house import House, a_house, people_in
from bench.load import as_bytes, closed_loop, latencies
from bench.peer_environments import PEERS, peer_python, pinned
from bench.processes import answering, running, spent
from bench.report import publish
from libs.common.ids import new_id
from ops.stack.stack import Stack
from tests.harness.stripe_emulator import free_port

CLIENTS: Final = 32
PEOPLE: Final = 10
SECONDS: Final = float(os.environ.get("BENCH_SECONDS", "4"))
SINGLE: Final = 40
LANGGRAPH: Final = "LangGraph server, in memory"
FIRST: Final = f"{OURS}, first event of one stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphServer:
    url: str
    pid: int

    async def runs(self) -> Figures:
        body = orjson.dumps({"assistant_id": "agent", "input": {"task": "Plan a launch"}})
        request = as_bytes("POST", "/runs/wait", headers={"Content-Type": "application/json"}, body=body)
        before = spent(self.pid)
        outcome = await closed_loop(self.url, itertools.repeat(request), connections=CLIENTS, seconds=SECONDS)
        outcome.require(200)
        return outcome.costing(before, spent(self.pid))


@asynccontextmanager
async def langgraph() -> AsyncGenerator[GraphServer, None]:
    port = free_port()
    program = peer_python("langgraph").parent / "langgraph"
    command = (program, "dev", "--no-browser", "--no-reload", "--host", "127.0.0.1", "--port", str(port))
    environment = {"LANGSMITH_TRACING": "false", "LANGGRAPH_CLI_NO_ANALYTICS": "1", "LOG_LEVEL": "WARNING"}
    # Its server looks for programs beside the one that started it.
    environment["PATH"] = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    async with running(command, environment=environment, folder=PEERS / "langgraph", name="langgraph") as pid:
        url = f"http://127.0.0.1:{port}"
        await answering(f"{url}/ok", pid, within_s=120)
        yield GraphServer(url=url, pid=pid)


async def finish(house: House, seconds: float) -> Figures:
    before = house.spent()
    asks = (house.ask(number, wait_s=30) for number in itertools.count())
    outcome = await closed_loop(house.url, asks, connections=CLIENTS, seconds=seconds)
    outcome.require(200)
    await house.until_quiet()  # charged, too
    return outcome.costing(before, house.spent())


async def first_events(house: House) -> Figures:
    """From the 202 to the first event of the stream, one run at a time."""
    waits_ms: list[float] = []
    async with httpx.AsyncClient(base_url=house.url, timeout=30) as client:
        for headers in itertools.islice(_turns(house), SINGLE):
            key = {"Idempotency-Key": str(new_id())}
            body = {"task": "Plan a launch", "max_output_tokens": 500}
            accepted = (await client.post("/v1/runs", json=body, headers={**headers, **key})).raise_for_status()
            began = time.perf_counter()
            async with client.stream("GET", f"/v1/runs/{accepted.json()['id']}/events", headers=headers) as stream:
                async for line in stream.aiter_lines():
                    if line.startswith("event:"):
                        waits_ms.append((time.perf_counter() - began) * 1000)
                        break
            await house.until_quiet()
    return latencies(waits_ms)


def _turns(house: House) -> Iterator[dict[str, str]]:
    return itertools.cycle(house.headers)


async def compare(stack: Stack) -> Report:
    async with people_in(stack, PEOPLE) as house, langgraph() as peer:
        results = await alternate(
            [
                Contender(name=OURS, measure=lambda: finish(house, SECONDS), warm_up=lambda: finish(house, 1)),
                Contender(name=LANGGRAPH, measure=peer.runs, warm_up=peer.runs),
                Contender(name=FIRST, measure=lambda: first_events(house)),
            ]
        )
    return Report(
        name="runs",
        title="Runs: from the request to the finished answer",
        how=f"{CLIENTS} clients, {PEOPLE} people, {SECONDS:.0f} s a round. Our processor time and memory are of all "
        "four services; PostgreSQL, RabbitMQ and Redis, which keep what LangGraph's server forgets, run beside them.",
        columns=[PER_S, *LATENCIES, CPU, RSS],
        results=results,
        targets=[
            at_least("at least 2 times LangGraph's in-memory server", results.ratio("per_s", to=LANGGRAPH), 2),
            at_most(
                "first event p50 below 22 ms for a single stream",
                results.median(FIRST, "p50_ms"),
                22,
                digits=1,
                unit=" ms",
            ),
        ],
        notes=[f"langgraph {pinned('langgraph', 'langgraph')}, langgraph-cli {pinned('langgraph', 'langgraph-cli')}"],
    )


def main() -> None:
    with a_house() as stack:
        publish(uvloop.run(compare(stack)))


if __name__ == "__main__":
    main()
