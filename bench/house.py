"""The whole house for a comparison: a stack of its own, people on the largest plan, and what it spends."""

import os
import signal
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

import asyncpg
import httpx
import orjson

from bench.load import as_bytes
from bench.processes import Spent, spent
from libs.common.ids import new_id
from ops.stack.stack import Stack
from ops.stack.temporary import temporary_stack
from tests.harness.patience import eventually

UNHINDERED: Final = {"RATE_LIMIT_MAX_REQUESTS": "10000000", "AUTH_RATE_LIMIT_MAX_REQUESTS": "100000"}
SERVICES: Final = ("gateway", "metering", "agents", "billing")


@contextmanager
def a_house() -> Generator[Stack, None, None]:
    with temporary_stack() as stack:
        stack.up(settings=UNHINDERED)
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

    @contextmanager
    def standing_still(self, service: str) -> Generator[None, None, None]:
        os.kill(self.stack.pid(service), signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.stack.pid(service), signal.SIGCONT)

    async def is_quiet(self) -> bool:
        """Nothing runs and nothing is held any more: the next contender has the machine to itself."""
        open_runs = await self.operator.fetchval(
            "SELECT count(*) FROM agent_runs WHERE status IN ('queued', 'running')"
        )
        held = await self.operator.fetchval("SELECT count(*) FROM metering.holds WHERE state = 'held'")
        return open_runs == 0 and held == 0

    async def until_quiet(self) -> None:
        await eventually(self.is_quiet, within_s=300, every_s=0.1)


@asynccontextmanager
async def people_in(stack: Stack, count: int) -> AsyncGenerator[House, None]:
    """People who are signed in, on the largest plan, and known as such to metering and agents."""
    environment = stack.environment()
    operator = await asyncpg.connect(environment["OPERATOR_DATABASE_URL"])
    try:
        people = [await _sign_up(environment) for _ in range(count)]
        ids = [user_id for user_id, _ in people]
        await operator.execute(
            """
            UPDATE user_profiles SET subscription_status = 'active', subscription_tier = 'enterprise'
            WHERE user_id = ANY($1::uuid[])
            """,
            ids,
        )

        async def are_known() -> bool:
            known = await operator.fetchval(
                """
                SELECT count(*) FROM (
                    SELECT tier, user_id FROM agents.entitlements
                    UNION ALL SELECT tier, user_id FROM metering.entitlements
                ) AS told
                WHERE user_id = ANY($1::text[]) AND tier = 'enterprise'
                """,
                ids,
            )
            return known == 2 * count

        await eventually(are_known, within_s=60, every_s=0.2)
        headers = [{"Authorization": f"Bearer {token}"} for _, token in people]
        yield House(stack=stack, operator=operator, url=environment["GATEWAY_URL"], headers=headers)
    finally:
        await operator.close()


async def _sign_up(environment: Mapping[str, str]) -> tuple[str, str]:
    """The id and the access token."""
    headers = {"apikey": environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]}
    async with httpx.AsyncClient(base_url=environment["GATEWAY_URL"], headers=headers, timeout=60) as client:
        body = {"email": f"bench-{new_id().hex}@example.com", "password": new_id().hex}
        session = (await client.post("/auth/v1/signup", json=body)).raise_for_status().json()
    return session["user"]["id"], session["access_token"]
