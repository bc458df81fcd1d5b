"""People who go on working through a fault, and a record of every answer they got."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import httpx

from libs.common.ids import new_id

ANSWER_WITHIN_S: Final = 5.0
"""The promise for every answer during a fault."""
_PATIENCE_S: Final = 20.0
"""Longer than the promise, so that a broken one is measured instead of cut off."""
_LIMITED: Final = 429


UNLIMITED: Final = """
    UPDATE user_profiles SET subscription_status = 'active', subscription_tier = 'enterprise'
    WHERE user_id = ANY($1::uuid[])
"""
"""By the runbook's hand: what is measured here is faults, not plans."""


@dataclass(slots=True, kw_only=True)
class Record:
    """How long each answer took, what was wrong with any, and which runs were tried for and accepted."""

    waits_s: list[float] = field(default_factory=list[float])
    statuses: dict[str, int] = field(default_factory=dict[str, int])
    wrong: list[str] = field(default_factory=list[str])
    accepted: set[str] = field(default_factory=set[str])
    attempted: int = 0
    unreachable: int = 0
    """The gateway's own process was down: nobody could answer, and the same key asked again."""

    def note(self, response: httpx.Response, wait_s: float) -> None:
        status = response.status_code
        self.waits_s.append(wait_s)
        self.statuses[str(status)] = self.statuses.get(str(status), 0) + 1
        if status >= 500 and (status != 503 or "retry-after" not in response.headers):
            self.wrong.append(f"{response.request.method} {response.request.url.path}: {status} {response.text[:200]}")

    @property
    def slowest_s(self) -> float:
        return max(self.waits_s)

    @property
    def p99_s(self) -> float:
        return sorted(self.waits_s)[int(len(self.waits_s) * 0.99)]


async def work_on(client: httpx.AsyncClient, record: Record, *, until: asyncio.Event) -> None:
    """Look, look again, order a run; ask under the same key until the order is surely placed. Repeat."""
    while not until.is_set():
        await asked(client, record, "GET", "/v1/profile")
        await asked(client, record, "GET", "/v1/usage")
        key, record.attempted = str(new_id()), record.attempted + 1
        while True:
            response = await asked(
                client, record, "POST", "/v1/runs", json={"task": "Go on"}, headers={"Idempotency-Key": key}
            )
            if response is not None and response.status_code == 202:
                record.accepted.add(response.json()["id"])
                break
            if response is not None and response.status_code == _LIMITED and "quota" in response.text:
                raise AssertionError(f"the plan is used up, and no fault is measured any more: {response.text}")
            await asyncio.sleep(0.2)
        await asyncio.sleep(0.05)


async def asked(
    client: httpx.AsyncClient, record: Record, method: str, path: str, **content: Any
) -> httpx.Response | None:
    """One request; None if no process was there to take it."""
    started = time.monotonic()
    try:
        response = await client.request(method, path, **content)
    except httpx.TransportError:
        record.unreachable += 1
        await asyncio.sleep(0.1)
        return None
    record.note(response, time.monotonic() - started)
    return response


async def while_working(
    clients: Sequence[httpx.AsyncClient], record: Record, fault: Callable[[], Awaitable[None]]
) -> None:
    """Let everybody work a second, through the fault, and until their last orders are placed."""
    over = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(work_on(client, record, until=over))
        await asyncio.sleep(1)
        await fault()
        await asyncio.sleep(1)
        over.set()


@asynccontextmanager
async def people(environment: Mapping[str, str], count: int) -> AsyncGenerator[list[httpx.AsyncClient], None]:
    """Signed-in clients of the running stack, each somebody of their own, at its gateways in turn."""
    gateways = environment["GATEWAY_URLS"].split(",")
    async with AsyncExitStack() as stack:
        clients: list[httpx.AsyncClient] = []
        members: list[str] = []
        for number in range(count):
            client = await stack.enter_async_context(
                httpx.AsyncClient(
                    base_url=gateways[number % len(gateways)],
                    headers={"apikey": environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]},
                    timeout=_PATIENCE_S,
                )
            )
            body = {"email": f"{new_id().hex}@example.com", "password": new_id().hex}
            session = (await client.post("/auth/v1/signup", json=body)).raise_for_status().json()
            client.headers["Authorization"] = f"Bearer {session['access_token']}"
            clients.append(client)
            members.append(session["user"]["id"])
        connection = await asyncpg.connect(environment["OPERATOR_DATABASE_URL"])
        try:
            await connection.execute(UNLIMITED, members)
        finally:
            await connection.close()
        yield clients
