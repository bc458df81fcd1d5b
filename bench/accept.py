"""Runs accepted a second, durably, beside a proxy's made-up completions: `make bench-accept`.

Ours: signed in, rate limited, the hold committed at metering, the event committed in the outbox, then the 202, and the
event confirmed by the broker and its hold bound to the run. Accepting alone is compared: agents stands still meanwhile,
and the runs wait in its queue. A second figure has the whole house at work, doing the runs as they come. Theirs:
LiteLLM's proxy with a mock answer, which stores nothing.
"""

import itertools
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
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

CONNECTIONS: Final = 8
PEOPLE: Final = 10
SECONDS: Final = float(os.environ.get("BENCH_SECONDS", "2"))
LITELLM: Final = "LiteLLM proxy, mock"
ALONE: Final = "LiteLLM proxy, one connection"
AT_WORK: Final = f"{OURS}, doing the runs meanwhile"


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


async def accept(house: House, seconds: float, *, alone: bool) -> Figures:
    before = house.spent()
    asks = (house.ask(number) for number in itertools.count())
    with house.standing_still("agents") if alone else nullcontext():
        outcome = await closed_loop(house.url, asks, connections=CONNECTIONS, seconds=seconds)
        outcome.require(202)
        figures = outcome.costing(before, house.spent())
    await house.until_quiet()  # what was accepted is also done
    return figures if alone else outcome.costing(before, house.spent())


async def compare(stack: Stack) -> Report:
    async with people_in(stack, PEOPLE) as house, litellm() as proxy:
        results = await alternate(
            [
                Contender(
                    name=OURS,
                    measure=lambda: accept(house, SECONDS, alone=True),
                    warm_up=lambda: accept(house, 0.5, alone=True),
                ),
                Contender(
                    name=AT_WORK,
                    measure=lambda: accept(house, SECONDS, alone=False),
                    warm_up=lambda: accept(house, 0.5, alone=False),
                ),
                Contender(
                    name=LITELLM,
                    measure=lambda: proxy.complete(CONNECTIONS),
                    warm_up=lambda: proxy.complete(CONNECTIONS),
                ),
                Contender(name=ALONE, measure=lambda: proxy.complete(1)),
            ]
        )
    return Report(
        name="accept",
        title="Accept: durable runs beside made-up completions",
        how=f"{CONNECTIONS} connections, {PEOPLE} people, an Idempotency-Key each. Accepting alone, and with the runs "
        "done meanwhile. Our processor time and memory are of all four services; in the second case they include doing "
        "what was accepted.",
        columns=[PER_S, *LATENCIES, CPU, RSS],
        results=results,
        targets=[
            at_least("at least 10 times LiteLLM's completions", results.ratio("per_s", to=LITELLM), 10),
            at_most(
                f"p50 below LiteLLM's at one connection ({results.median(ALONE, 'p50_ms'):.1f} ms)",
                results.ratio("p50_ms", to=ALONE),
                1,
            ),
            at_most("p50 below 21 ms", results.median(OURS, "p50_ms"), 21, digits=1, unit=" ms"),
        ],
        notes=[f"LiteLLM {pinned('litellm', 'litellm')}"],
    )


def main() -> None:
    with a_house() as stack:
        publish(uvloop.run(compare(stack)))


if __name__ == "__main__":
    main()
