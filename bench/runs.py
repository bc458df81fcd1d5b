"""What the run engine does: `python -m bench.runs MEASUREMENT`, each on a stack of its own.

    first_token   from the 202 to the first `run.delta` at the client, one run at a time
    rate          runs of the offline model a second, from the request to the settled charge
    noisy         the same waits of one user alone, and beside another user's thousand waiting runs, with a provider
    noisy_offline the same with the offline model: it computes instead of waiting, so two cores are shared, too
    memory        the size of one worker that streams five hundred runs at once

The clients share the machine with the stack. Processor time is told beside each figure: it depends less on what
else runs on the machine than the clock does.
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import asyncpg
import httpx
import orjson
from llmock.chaos import StreamChaos
from llmock.testing import LLMockServer

from libs.common.http_client import HttpClient, open_client
from libs.common.ids import new_id
from ops.stack.stack import Stack
from ops.stack.temporary import temporary_stack

SERVICES: Final = ("gateway", "metering", "agents", "billing")
FAST: Final = {"RATE_LIMIT_MAX_REQUESTS": "10000000", "AUTH_RATE_LIMIT_MAX_REQUESTS": "100000"}
WARM_UP: Final = 5
WAITS: Final = 100
RATE_RUNS: Final = 1_500
RATE_USERS: Final = 10
NOISE: Final = 1_000
STREAMS: Final = 500
CHUNK_DELAY_MS: Final = {"noisy": 100, "memory": 2_000}
"""How long the provider's stand-in waits before each piece: a quick provider, and one that talks for minutes."""
TICKS: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    id: str
    client: httpx.AsyncClient
    lean: HttpClient
    """Asks at a tenth of the processor time: on two cores the clock would measure the client otherwise."""

    async def ask(self, task: str = "Plan a launch") -> str:
        """As a patient client asks: again under the same key while the house is too busy."""
        headers = {
            "Idempotency-Key": str(new_id()),
            "Authorization": self.client.headers["Authorization"],
            "Content-Type": "application/json",
        }
        content = orjson.dumps({"task": task, "max_output_tokens": 500})
        while True:
            answer = await self.lean.request("POST", "/v1/runs", headers=headers, content=content, timeout_s=60)
            if answer.is_success:
                return answer.json()["id"]
            if answer.status_code not in {409, 503}:
                raise RuntimeError(f"{answer.status_code}: {answer.content.decode()}")
            await asyncio.sleep(0.2)

    async def first_token_ms(self) -> float:
        run_id = await self.ask()
        started = time.perf_counter()
        async with self.client.stream("GET", f"/v1/runs/{run_id}/events") as stream:
            async for line in stream.aiter_lines():
                if line == "event: run.delta":
                    return (time.perf_counter() - started) * 1000
        raise RuntimeError("the stream ended without a word")


class Bench:
    def __init__(self, stack: Stack, operator: asyncpg.Connection, lean: HttpClient) -> None:
        self.lean = lean
        self.stack = stack
        self.operator = operator
        self._environment: Mapping[str, str] = stack.environment()

    @asynccontextmanager
    async def person(self, tier: str = "enterprise") -> AsyncGenerator[Person, None]:
        """Somebody on a plan, by default the largest, known as such to metering and agents."""
        headers = {"apikey": self._environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]}
        limits = httpx.Limits(max_connections=None)
        url = self._environment["GATEWAY_URL"]
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120, limits=limits) as client:
            body = {"email": f"bench-{new_id().hex}@example.com", "password": new_id().hex}
            session = (await client.post("/auth/v1/signup", json=body)).raise_for_status().json()
            client.headers["Authorization"] = f"Bearer {session['access_token']}"
            person = Person(id=session["user"]["id"], client=client, lean=self.lean)
            await self.operator.execute(
                """
                UPDATE user_profiles SET subscription_status = 'active', subscription_tier = $2
                WHERE user_id = $1::uuid
                """,
                person.id,
                tier,
            )
            await until(lambda: self._is_on(tier, person.id))
            yield person

    async def _is_on(self, tier: str, user_id: str) -> bool:
        tiers = await self.operator.fetch(
            """
            SELECT tier FROM agents.entitlements WHERE user_id = $1
            UNION ALL SELECT tier FROM metering.entitlements WHERE user_id = $1
            """,
            user_id,
        )
        return [row["tier"] for row in tiers] == [tier] * 2

    def processor_s(self) -> dict[str, float]:
        """Seconds each service has computed so far, its first replica; the whole of PostgreSQL and the broker."""
        return {name: _processor_s(self.stack.pid(name)) for name in (*SERVICES, "postgres", "rabbitmq", "redis")}

    async def count(self, query: str, *args: object) -> int:
        return await self.operator.fetchval(query, *args)


async def until(probe: Callable[[], Awaitable[bool]], *, within_s: float = 300, every_s: float = 0.1) -> None:
    deadline = time.monotonic() + within_s
    while not await probe():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        await asyncio.sleep(every_s)


def _processor_s(pid: int) -> float:
    """Of a process and the children it has now: PostgreSQL's backends live as long as their pools."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS + sum(_processor_s(int(child)) for child in children)


def rss_mb(pid: int) -> float:
    line = next(it for it in Path(f"/proc/{pid}/status").read_text().splitlines() if it.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def told(waits_ms: list[float]) -> str:
    waits = sorted(waits_ms)
    return f"p50 {statistics.median(waits):.1f} ms, p95 {waits[int(len(waits) * 0.95)]:.1f} ms, max {waits[-1]:.1f} ms"


async def waits_of(person: Person, count: int) -> list[float]:
    waits_ms: list[float] = []
    for number in range(count + WARM_UP):
        wait_ms = await person.first_token_ms()
        if number >= WARM_UP:
            waits_ms.append(wait_ms)
        await asyncio.sleep(0.2)  # one at a time: let the run end
    return waits_ms


async def first_token(bench: Bench) -> None:
    async with bench.person() as person:
        print(f"accepted to first token, {WAITS} runs: {told(await waits_of(person, WAITS))}")


async def rate(bench: Bench) -> None:
    async def ask_many(person: Person) -> None:
        for _ in range(0, RATE_RUNS // RATE_USERS, 5):
            await asyncio.gather(*(person.ask() for _ in range(5)))

    async def settled() -> int:
        return await bench.count("SELECT count(*) FROM metering.holds WHERE state = 'settled'")

    async with _people(bench, RATE_USERS) as people:
        await asyncio.gather(*(person.ask() for person in people))
        await until(lambda: _is(settled, RATE_USERS))
        before, started = bench.processor_s(), time.perf_counter()
        await asyncio.gather(*(ask_many(person) for person in people))
        accepted_s = time.perf_counter() - started
        await until(lambda: _is(settled, RATE_RUNS + RATE_USERS), every_s=0.05)
        took_s = time.perf_counter() - started
    after = bench.processor_s()
    spent = {name: after[name] - before[name] for name in after}
    print(f"{RATE_RUNS} runs: accepted {RATE_RUNS / accepted_s:.0f}/s, settled {RATE_RUNS / took_s:.0f}/s")
    each = ", ".join(f"{name} {s / RATE_RUNS * 1000:.1f}" for name, s in spent.items())
    print(f"processor ms a run: {each}; together {sum(spent.values()) / RATE_RUNS * 1000:.1f}")


async def _is(count: Callable[[], Awaitable[int]], wanted: int) -> bool:
    return await count() >= wanted


@asynccontextmanager
async def _people(bench: Bench, count: int) -> AsyncGenerator[list[Person], None]:
    if count == 0:
        yield []
        return
    async with bench.person() as person, _people(bench, count - 1) as others:
        yield [person, *others]


async def noisy(bench: Bench) -> None:
    # The smallest plan that has room to hold a thousand runs. What its user has beyond the plan's concurrency waits.
    async with bench.person("pro+") as quiet, bench.person("pro+") as loud:
        alone = await waits_of(quiet, WAITS)
        print(f"alone: {told(alone)}")
        for _ in range(0, NOISE, 20):
            await asyncio.gather(*(loud.ask("Plan something loud") for _ in range(20)))
        beside: list[float] = []
        waiting = "SELECT count(*) FROM agent_runs WHERE user_id = $1 AND status IN ('queued', 'running')"
        while len(beside) < WAITS and await bench.count(waiting, loud.id) > 0:
            beside.append(await quiet.first_token_ms())
            await asyncio.sleep(0.2)  # as alone
        left = await bench.count(waiting, loud.id)
        print(f"beside {NOISE} runs of another, {len(beside)} waits, {left} of them still waiting at the end:")
        print(f"  {told(beside)}")


async def memory(bench: Bench) -> None:
    running = "SELECT count(*) FROM agent_runs WHERE status = 'running'"
    pid = bench.stack.pid("agents")
    print(f"idle {rss_mb(pid):.0f} MB")
    async with _people(bench, STREAMS // 50) as people:
        for person in people:
            await asyncio.gather(*(person.ask("Say many words.") for _ in range(STREAMS // len(people))))

        async def all_run() -> bool:
            return await bench.count(running) >= STREAMS

        await until(all_run)
        sizes: list[float] = []
        for _ in range(20):
            sizes.append(rss_mb(pid))
            await asyncio.sleep(0.5)
        at_once = await bench.count(running)
    print(f"{at_once} runs streaming at once: {max(sizes):.0f} MB at most")


async def _measure(stack: Stack, measurement: Callable[[Bench], Awaitable[None]]) -> None:
    environment = stack.environment()
    operator = await asyncpg.connect(environment["OPERATOR_DATABASE_URL"])
    url = environment["GATEWAY_URL"]
    try:
        async with open_client(url, max_connections=200, connect_s=30, keep_alive_s=30) as lean:
            print(f"load before {os.getloadavg()[0]:.1f}")
            await measurement(Bench(stack, operator, lean))
            print(f"load after {os.getloadavg()[0]:.1f}")
    finally:
        await operator.close()


def main(name: str) -> None:
    measurements = {
        "first_token": first_token,
        "rate": rate,
        "noisy": noisy,
        "noisy_offline": noisy,
        "memory": memory,
    }
    with LLMockServer() as provider, temporary_stack() as stack:
        settings = dict(FAST)
        if name.startswith("noisy"):
            settings["AGENTS_MAX_PARALLEL_RUNS"] = "64"
        if name in CHUNK_DELAY_MS:
            provider.state.stream_chaos = StreamChaos(chunk_delay_ms=CHUNK_DELAY_MS[name])
            settings |= {
                "OPENAI_API_KEY": "sk-of-nobody-0123456789",
                "OPENAI_BASE_URL": provider.base_url("openai"),
                "AGENTS_MODELS": "openai:gpt-4o-mini",
            }
        if name == "memory":
            settings |= {
                "AGENTS_MAX_PARALLEL_RUNS": str(STREAMS),
                "AGENTS_PROVIDER_PARALLEL_CALLS": str(STREAMS),
            }
        stack.up(settings=settings)
        asyncio.run(_measure(stack, measurements[name]))


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "first_token")
