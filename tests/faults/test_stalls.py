"""Passwords take their time off the event loop: the gateway answers others, and the broker, while fifty are checked."""

import asyncio
import statistics
import time
from collections.abc import Mapping
from typing import Final

import httpx

from libs.common.ids import new_id
from ops.stack.stack import Stack
from tests.harness.tasks import running

PEOPLE: Final = 50
AWAKE_WITHIN_S: Final = 0.5
"""One check takes about 25 ms of a processor: fifty of them on the loop would be a silence of more than a second."""


class Knocker:
    """Asks one question after the other, as a supervisor would, only without pause."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.waits_s: list[float] = []

    async def knock(self) -> None:
        while True:
            started = time.perf_counter()
            (await self._client.get("/health/live")).raise_for_status()
            self.waits_s.append(time.perf_counter() - started)


def lost_connections(stack: Stack) -> int:
    return sum(log.read_text().count("broker_connection_lost") for log in stack.home.logs.glob("gateway-*.log"))


async def test_the_gateway_stays_awake_while_fifty_people_sign_up_and_in(
    stack: Stack, environment: Mapping[str, str]
) -> None:
    bodies = [{"email": f"{new_id().hex}@example.com", "password": new_id().hex} for _ in range(PEOPLE)]
    before = lost_connections(stack)
    async with httpx.AsyncClient(
        base_url=environment["GATEWAY_URL"],
        headers={"apikey": environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]},
        timeout=30,
    ) as client:
        knocker = Knocker(client)
        async with running(knocker.knock):
            for path in ("/auth/v1/signup", "/auth/v1/token?grant_type=password"):
                answers = await asyncio.gather(*(client.post(path, json=body) for body in bodies))
                assert {answer.status_code for answer in answers} == {200}
    cuts = statistics.quantiles(knocker.waits_s, n=100)
    print(
        f"{2 * PEOPLE} passwords beside {len(knocker.waits_s)} questions: p50 {cuts[49] * 1000:.1f} ms, "
        f"p99 {cuts[98] * 1000:.1f} ms, at most {max(knocker.waits_s) * 1000:.0f} ms"
    )
    assert cuts[98] <= AWAKE_WITHIN_S
    assert lost_connections(stack) == before
