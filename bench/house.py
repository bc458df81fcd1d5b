"""The whole house for a comparison: a stack of its own, people on the largest plan, and what it spends."""

from collections.abc import AsyncGenerator, Generator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg
import orjson

from bench.load import as_bytes
from bench.processes import Spent, spent
from bench.runs import FAST, Bench, until
from libs.common.ids import new_id
from ops.stack.stack import Stack
from ops.stack.temporary import temporary_stack

SERVICES: Final = ("gateway", "metering", "agents", "billing")


@contextmanager
def a_house() -> Generator[Stack, None, None]:
    with temporary_stack() as stack:
        stack.up(settings=dict(FAST))
        yield stack


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    stack: Stack
    operator: "asyncpg.Connection[asyncpg.Record]"
    url: str
    headers: list[dict[str, str]]
    """Of people who are signed in."""

    def spent(self) -> Spent:
        """By our four services; the engines count for nobody."""
        return spent(*(self.stack.pid(name) for name in SERVICES))

    def ask(self, number: int, *, wait_s: int = 0) -> bytes:
        """A run that is asked for by one of the people, in turns."""
        headers = {
            **self.headers[number % len(self.headers)],
            "Content-Type": "application/json",
            "Idempotency-Key": str(new_id()),
            **({"Prefer": f"wait={wait_s}"} if wait_s else {}),
        }
        body = orjson.dumps({"task": "Plan a launch", "max_output_tokens": 500})
        return as_bytes("POST", "/v1/runs", headers=headers, body=body)

    async def is_quiet(self) -> bool:
        """Nothing runs and nothing is held any more: the next contender has the machine to itself."""
        open_runs = await self.operator.fetchval(
            "SELECT count(*) FROM agent_runs WHERE status IN ('queued', 'running')"
        )
        held = await self.operator.fetchval("SELECT count(*) FROM metering.holds WHERE state = 'held'")
        return open_runs == 0 and held == 0

    async def until_quiet(self) -> None:
        await until(self.is_quiet)


@asynccontextmanager
async def people_in(stack: Stack, count: int) -> AsyncGenerator[House, None]:
    async with AsyncExitStack() as exits:
        operator = await asyncpg.connect(stack.environment()["OPERATOR_DATABASE_URL"])
        exits.push_async_callback(operator.close)
        bench = Bench(stack, operator)
        people = [await exits.enter_async_context(bench.person()) for _ in range(count)]
        yield House(
            stack=stack,
            operator=operator,
            url=stack.environment()["GATEWAY_URL"],
            headers=[{"Authorization": person.client.headers["Authorization"]} for person in people],
        )
