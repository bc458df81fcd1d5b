"""A release and its rollback under traffic, on Compose: no accepted run is lost, every client gets an answer."""

import asyncio
from collections.abc import Generator

import httpx
import psycopg
import pytest

from libs.common.ids import new_id
from ops.stack import compose
from ops.stack.stack import Stack
from tests.harness.live import signed_up
from tests.harness.patience import eventually

pytestmark = pytest.mark.skipif(not compose.is_available(), reason="images have tags where a Docker engine answers")

SETTINGS = {"STACK_RUNNER": "compose", "AUTH_RATE_LIMIT_MAX_REQUESTS": "100000", "RATE_LIMIT_MAX_REQUESTS": "100000"}


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack, None, None]:
    stack = Stack(tmp_path_factory.mktemp("release") / "home")
    try:
        stack.up(settings=SETTINGS, scale="gateway=2")
        yield stack
    finally:
        stack.wipe()


class Traffic:
    """One client that asks for runs without a pause, over both gateways, each with its key until it has an answer."""

    def __init__(self, gateways: list[str], headers: dict[str, str]) -> None:
        self._gateways = gateways
        self._headers = headers
        self.accepted: list[str] = []
        self.repeated = 0
        self.longest_s = 0.0
        self.done = asyncio.Event()

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=10, headers=self._headers) as client:
            while not self.done.is_set():
                await self._one(client)

    async def _one(self, client: httpx.AsyncClient) -> None:
        key, began = str(new_id()), asyncio.get_running_loop().time()
        for attempt in range(100):
            url = f"{self._gateways[attempt % len(self._gateways)]}/v1/runs"
            body = {"task": "Name a risk", "max_output_tokens": 10}
            try:
                response = await client.post(url, json=body, headers={"Idempotency-Key": key})
            except httpx.TransportError:
                self.repeated += 1
                await asyncio.sleep(0.2)
                continue
            if response.status_code == 202:
                self.accepted.append(response.json()["id"])
                self.longest_s = max(self.longest_s, asyncio.get_running_loop().time() - began)
                return
            self.repeated += 1
            await asyncio.sleep(0.2)
        raise AssertionError(f"no answer for {key}")


async def test_a_release_and_a_rollback_lose_no_accepted_run(released: Stack) -> None:
    environment = released.environment()
    async with signed_up(environment) as person:
        rollout = released.rollout()
        set_to_enterprise(released, person.id)
        traffic = Traffic(environment["GATEWAY_URLS"].split(","), dict(person.client.headers))
        running = asyncio.create_task(traffic.run())
        await asyncio.to_thread(rollout.release, "next")
        at_release = len(traffic.accepted)
        assert rollout.history() == ["latest", "next"]
        assert await asyncio.to_thread(rollout.rollback) == "latest"
        traffic.done.set()
        await running
        print(
            f"accepted {at_release} during the release, {len(traffic.accepted) - at_release} during the rollback; "
            f"repeated {traffic.repeated}, the longest answer took {traffic.longest_s:.1f} s"
        )
        assert len(set(traffic.accepted)) == len(traffic.accepted)

        async def all_have_ended() -> bool:
            found = set(ended(released, person.id))
            return found >= set(traffic.accepted)

        await eventually(all_have_ended, within_s=120, every_s=1)


def set_to_enterprise(stack: Stack, user_id: str) -> None:
    sql = """UPDATE user_profiles SET subscription_tier = 'enterprise', subscription_status = 'active'
             WHERE user_id = %s RETURNING user_id"""
    execute(stack, sql, user_id)


def ended(stack: Stack, user_id: str) -> list[str]:
    sql = "SELECT id FROM agent_runs WHERE user_id = %s AND status = 'succeeded'"
    return [str(row[0]) for row in execute(stack, sql, user_id)]


def execute(stack: Stack, statement: str, *values: str) -> list[tuple[object, ...]]:
    with psycopg.connect(stack.environment()["OPERATOR_DATABASE_URL"]) as conn:
        return conn.execute(statement.encode(), values).fetchall()
