"""Runs accepted a second, durably, beside a proxy's made-up completions: `make bench-accept`.

Ours: signed in, rate limited, the hold committed at metering, the event committed in the outbox, then the 202, and the
event confirmed by the broker and its hold bound to the run. Accepting alone is compared: agents stands still meanwhile,
and the runs wait in its queue. A further figure has the whole house at work, doing the runs as they come. Theirs:
LiteLLM's proxy with a mock answer, which stores nothing.

How many are accepted a second is compared at 32 connections, as reads and runs are elsewhere: an acceptance waits for
the disk and for calls, and with eight who ask that is what is measured. How long one takes is compared at eight.
"""

import itertools
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import orjson
import uvloop

from bench.frame import CPU, LATENCIES, OURS, PER_S, RSS, Contender, Figures, Report, alternate, at_least, at_most
from bench.house import House, a_house, people_in
from bench.load import as_bytes, closed_loop
from bench.peer_environments import PEERS, peer_python, pinned
from bench.processes import answering, running, spent
from bench.report import publish
from ops.stack.stack import Stack
from tests.harness.stripe_emulator import free_port

FEW: Final = 8
MANY: Final = 32
PEOPLE: Final = 10
SECONDS: Final = float(os.environ.get("BENCH_SECONDS", "2"))
OF_FEW: Final = f"{OURS}, {FEW} connections"
AT_WORK: Final = f"{OURS}, {FEW} connections, doing the runs meanwhile"
LITELLM: Final = "LiteLLM proxy, mock"
LITELLM_OF_FEW: Final = f"{LITELLM}, {FEW} connections"
ALONE: Final = f"{LITELLM}, one connection"


@dataclass(frozen=True, slots=True, kw_only=True)
class Proxy:
    url: str
    pid: int
    key: str

    async def complete(self, connections: int) -> Figures:
        body = orjson.dumps({"model": "mock", "messages": [{"role": "user", "content": "Plan a launch"}]})
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = as_bytes("POST", "/chat/completions", headers=headers, body=body)
        before = spent(self.pid)
        outcome = await closed_loop(self.url, itertools.repeat(request), connections=connections, seconds=SECONDS)
        outcome.require(200)
        return outcome.costing(before, spent(self.pid))


@asynccontextmanager
async def litellm() -> AsyncGenerator[Proxy, None]:
    port = free_port()
    program: Path = peer_python("litellm").parent / "litellm"
    command = (program, "--config", PEERS / "litellm" / "config.yaml", "--host", "127.0.0.1", "--port", str(port))
    key = f"sk-{secrets.token_hex(32)}"
    environment = {"LITELLM_MASTER_KEY": key, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    async with running(command, environment=environment, folder=PEERS / "litellm", name="litellm") as pid:
        url = f"http://127.0.0.1:{port}"
        await answering(f"{url}/health/liveliness", pid, within_s=120)
        yield Proxy(url=url, pid=pid, key=key)


async def accept(house: House, seconds: float, connections: int, *, alone: bool = True) -> Figures:
    before = house.spent()
    asks = (house.ask(number) for number in itertools.count())
    with house.standing_still("agents") if alone else nullcontext():
        outcome = await closed_loop(house.url, asks, connections=connections, seconds=seconds)
        outcome.require(202)
        figures = outcome.costing(before, house.spent())
    await house.until_quiet()  # what was accepted is also done
    return figures if alone else outcome.costing(before, house.spent())


def _ours(house: House, name: str, connections: int, *, alone: bool = True) -> Contender:
    return Contender(
        name=name,
        measure=lambda: accept(house, SECONDS, connections, alone=alone),
        warm_up=lambda: accept(house, 0.5, connections, alone=alone),
    )


async def compare(stack: Stack) -> Report:
    async with people_in(stack, PEOPLE) as house, litellm() as proxy:
        results = await alternate(
            [
                _ours(house, OURS, MANY),
                _ours(house, OF_FEW, FEW),
                _ours(house, AT_WORK, FEW, alone=False),
                *(
                    Contender(
                        name=name, measure=partial(proxy.complete, number), warm_up=partial(proxy.complete, number)
                    )
                    for name, number in ((LITELLM, MANY), (LITELLM_OF_FEW, FEW), (ALONE, 1))
                ),
            ]
        )
    return Report(
        name="accept",
        title="Accept: durable runs beside made-up completions",
        how=f"{MANY} connections where nothing else is said, {PEOPLE} people, an Idempotency-Key each. "
        "Accepting alone, and with the runs done meanwhile. Our processor time and memory are of all four services; in "
        "the last case they include doing what was accepted.",
        columns=[PER_S, *LATENCIES, CPU, RSS],
        results=results,
        targets=[
            at_least("at least 10 times LiteLLM's completions", results.ratio("per_s", to=LITELLM), 10),
            at_most(
                f"p50 at {FEW} connections below LiteLLM's at one ({results.median(ALONE, 'p50_ms'):.1f} ms)",
                results.ratio("p50_ms", of=OF_FEW, to=ALONE),
                1,
            ),
            at_most(
                f"p50 at {FEW} connections below 21 ms", results.median(OF_FEW, "p50_ms"), 21, digits=1, unit=" ms"
            ),
        ],
        notes=[
            f"{results.ratio('per_s', of=OF_FEW, to=LITELLM_OF_FEW):.2f} times LiteLLM's at {FEW} connections",
            f"LiteLLM {pinned('litellm', 'litellm')}",
        ],
    )


def main() -> None:
    with a_house() as stack:
        publish(uvloop.run(compare(stack)))


if __name__ == "__main__":
    main()
