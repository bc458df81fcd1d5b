"""What makes one alert fire, and its heal: a fault of a running stack as a context manager."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final
from urllib.parse import urljoin

import httpx
import psycopg
import pytest

from libs.common import service_tokens
from libs.common.ids import new_id
from ops.home import ROOT
from ops.stack.stack import Stack
from tests.faults.disks import fill_but
from tests.faults.hands import frozen, superuser
from tests.faults.other_programs import started_otherwise, with_clock
from tests.harness.live import Person, find, park_one, run_to_its_end, signed_up, used
from tests.harness.patience import eventually

Fault = Callable[[Stack], AbstractAsyncContextManager[None]]
LEFT_FREE: Final = 1_900_000_000
"""Bytes: less than the 2 GB that doctor and alert want, more than the 1 GB below which the broker stops publishers."""


def engine_away(program: str) -> Fault:
    @asynccontextmanager
    async def fault(stack: Stack) -> AsyncGenerator[None, None]:
        with frozen(stack, program):
            yield

    return fault


def sick_row(make: str, heal: str) -> Fault:
    """A business fault as its trace in the tables, where breaking the real thing would take hours."""

    @asynccontextmanager
    async def fault(stack: Stack) -> AsyncGenerator[None, None]:
        superuser(stack, make)
        try:
            yield
        finally:
            superuser(stack, heal)

    return fault


@asynccontextmanager
async def parked(stack: Stack) -> AsyncGenerator[None, None]:
    await park_one(stack.environment())
    yield
    await healed_by(stack, "parked", "replay", "--all", "--yes")


@asynccontextmanager
async def counter_written_by_hand(stack: Stack) -> AsyncGenerator[None, None]:
    superuser(
        stack,
        """INSERT INTO usage_metrics (user_id, metric_type, metric_value, period_start, period_end)
           VALUES ('00000000-0000-7000-8000-0000000000f2', 'runs', 7, metering.period_start(now()),
                   metering.period_end(now()))""",
    )
    yield
    await healed_by(stack, "usage", "rebuild", "--yes")


async def healed_by(stack: Stack, *command: str) -> None:
    """An operator's own command, as the runbook has it."""
    process = await asyncio.create_subprocess_exec(
        str(ROOT / "scripts" / "venture"), *command,
        env={**os.environ, "VENTURE_HOME": str(stack.home.path)}, stdout=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert await process.wait() == 0


@asynccontextmanager
async def forged_webhooks(stack: Stack) -> AsyncGenerator[None, None]:
    async with httpx.AsyncClient() as client:
        refused = await client.post(f"{stack.environment()['BILLING_URL']}/webhooks/stripe", content=b"{}")
    assert refused.status_code == 400
    yield
    await restart(stack, "billing")


@asynccontextmanager
async def wrong_passwords(stack: Stack) -> AsyncGenerator[None, None]:
    """Somebody guesses on and on: a burst between two looks of Prometheus is a counter that has never grown, to it."""
    over = asyncio.Event()
    statuses: list[int] = []
    async with signed_up(stack.environment()) as person, asyncio.TaskGroup() as group:
        path, right = "/auth/v1/token", {"email": person.email, "password": "correct horse battery"}
        session = (await person.client.post(f"{path}?grant_type=password", json=right)).json()

        async def guess_on() -> None:
            ending = asyncio.ensure_future(over.wait())
            while not over.is_set():
                body = {"email": f"nobody-{len(statuses)}@example.com", "password": "no-such-password"}
                statuses.append((await person.client.post(f"{path}?grant_type=password", json=body)).status_code)
                await asyncio.wait({ending}, timeout=0.1)

        group.create_task(guess_on())
        yield
        over.set()
        assert set(statuses) == {400}, set(statuses)
        for _ in range(12 * len(statuses)):  # people come in again
            body = {"refresh_token": session["refresh_token"]}
            session = (
                (await person.client.post(f"{path}?grant_type=refresh_token", json=body)).raise_for_status().json()
            )


@asynccontextmanager
async def slow_answers(stack: Stack) -> AsyncGenerator[None, None]:
    """What is asked while metering stands still is answered when it goes on."""
    async with signed_up(stack.environment()) as person:

        async def ask() -> int:
            return (await person.client.get("/v1/usage")).status_code

        assert await ask() == 200
        with frozen(stack, "metering"):
            asked = [asyncio.ensure_future(ask()) for _ in range(40)]
            await asyncio.wait(asked, timeout=2.2)
        statuses = await asyncio.gather(*asked)
        assert statuses.count(200) > len(statuses) / 2, "slow, not refused"
        yield
        await good_answers(person, 25 * len(asked))


@asynccontextmanager
async def no_answers(stack: Stack) -> AsyncGenerator[None, None]:
    """Metering stands still, and whoever asks for their usage is refused: one person, again and again."""
    over = asyncio.Event()
    statuses: list[int] = []
    async with signed_up(stack.environment()) as person, asyncio.TaskGroup() as group:

        async def ask_on() -> None:
            ending = asyncio.ensure_future(over.wait())
            while not over.is_set():
                statuses.append((await person.client.get("/v1/usage")).status_code)
                await asyncio.wait({ending}, timeout=0.1)

        with frozen(stack, "metering"):
            for _ in range(3):  # while one looks whether metering is back, the others are refused at once
                group.create_task(ask_on())
            yield
            over.set()
        assert set(statuses) == {503}, set(statuses)
        await good_answers(person, 25 * len(statuses))


async def good_answers(person: Person, count: int) -> None:
    """So many that the few bad ones before no longer count."""
    for _ in range(0, count, 10):
        asked = (person.client.get("/auth/v1/.well-known/jwks.json") for _ in range(10))
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}


def waits_behind_an_open_transaction(run: str) -> Fault:
    """A run that no worker takes: somebody's transaction holds the row of its user, which workers pass over."""
    user_id = "00000000-0000-7000-8000-0000000000f3"

    @asynccontextmanager
    async def fault(stack: Stack) -> AsyncGenerator[None, None]:
        superuser(stack, "INSERT INTO agents.entitlements (user_id) VALUES (%s) ON CONFLICT DO NOTHING", user_id)
        with psycopg.connect(stack.operator_environment()["SUPERUSER_DATABASE_URL"]) as conn:
            conn.execute("SELECT FROM agents.entitlements WHERE user_id = %s FOR UPDATE", (user_id,))
            superuser(stack, run, user_id)
            try:
                yield
            finally:
                superuser(stack, "DELETE FROM agent_runs WHERE user_id = %s", user_id)
        superuser(stack, "DELETE FROM agents.entitlements WHERE user_id = %s", user_id)

    return fault


@asynccontextmanager
async def user_at_a_limit(stack: Stack) -> AsyncGenerator[None, None]:
    async with signed_up(stack.environment()) as person:
        await run_to_its_end(person)

        async def is_settled() -> bool:
            return await used(person) == 1

        await eventually(is_settled, within_s=15)
        superuser(
            stack,
            """INSERT INTO metering.thresholds (user_id, metric_type, period_start, percent)
               VALUES (%s, 'runs', metering.period_start(now()), 100)""",
            person.id,
        )
        yield
        superuser(stack, "DELETE FROM metering.thresholds WHERE user_id = %s", person.id)


@asynccontextmanager
async def service_killed(stack: Stack) -> AsyncGenerator[None, None]:
    with frozen(stack, "metering"):
        yield


async def restart(stack: Stack, service: str) -> None:
    """What a process remembers of its last minutes goes with it; the supervisor starts it again."""
    before = stack.pid(service)
    os.kill(before, signal.SIGTERM)

    async def is_another() -> bool:
        try:
            return stack.pid(service) != before
        except Exception as error:
            if "not running" in str(error):
                return False
            raise

    await eventually(is_another, within_s=30)


@asynccontextmanager
async def disk_filled(stack: Stack) -> AsyncGenerator[None, None]:
    """The stack's own disk, on which everything of it lies; what fills it is removed, as by the runbook."""
    disk = stack.home.path.parent
    if not disk.is_mount():
        pytest.skip("a disk that may be filled needs the right to mount one")
    filler = disk / "filler"
    fill_but(LEFT_FREE, filler)
    try:
        yield
    finally:
        filler.unlink()


@asynccontextmanager
async def clock_of_billing_off(stack: Stack) -> AsyncGenerator[None, None]:
    async with started_otherwise(stack, "billing", with_clock("+10m")):
        yield


@asynccontextmanager
async def hold_behind_an_open_transaction(stack: Stack) -> AsyncGenerator[None, None]:
    """A hold long past its time that the sweeper cannot end: somebody's transaction holds its user's counters."""
    user_id, hold_id = str(new_id()), str(new_id())
    environment = stack.operator_environment()
    secret, user = environment["SERVICE_TOKEN_SECRET"], {"sub": user_id, "role": "authenticated"}
    token = service_tokens.mint(secret, issuer="gateway", audience="metering", user=user)
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"}) as gateway:
        ask = {"hold_id": hold_id, "amounts": {"runs": 1}}
        granted = await gateway.post(f"{environment['METERING_URL']}/internal/holds", json=ask)
    assert granted.status_code == 201, granted.text
    with psycopg.connect(environment["SUPERUSER_DATABASE_URL"]) as conn:
        conn.execute("SELECT FROM usage_metrics WHERE user_id = %s FOR UPDATE", (user_id,))
        superuser(
            stack,
            """UPDATE metering.holds SET confirmed_at = created_at, expires_at = now() - interval '1 hour'
               WHERE id = %s""",
            hold_id,
        )
        yield


@asynccontextmanager
async def provider_out_of_order(stack: Stack) -> AsyncGenerator[None, None]:
    """Each call is answered with 503. The heal is the provider's: agents find out by themselves."""
    scenario = urljoin(stack.operator_environment()["OPENAI_BASE_URL"], "/_llmock/scenario")
    async with signed_up(stack.environment()) as person, httpx.AsyncClient() as provider:

        async def end_of_a_run() -> str:
            body = {"task": "Name one risk", "max_output_tokens": 40}
            ended = await person.client.post("/v1/runs", json=body, headers={"Prefer": "wait=15"})
            return ended.json()["status"]

        async def is_served() -> bool:
            return await end_of_a_run() == "succeeded"

        await buys_a_model(stack, person)
        outage = {"behaviors": [{"type": "fail", "status": 503, "times": None}]}
        (await provider.post(scenario, json=outage)).raise_for_status()
        try:
            # Three calls each, and five failures in a row are the measure.
            ends = [await end_of_a_run() for _ in range(2)]
            assert ends == ["failed", "failed"], ends
            yield
        finally:
            (await provider.delete(scenario)).raise_for_status()
        await eventually(is_served, within_s=60, every_s=1)


async def buys_a_model(stack: Stack, person: Person) -> None:
    """The free plan has the offline one alone. Known at once where it is written; agents learn it by an event."""
    superuser(
        stack,
        """UPDATE user_profiles SET subscription_status = 'active', subscription_tier = 'enterprise'
           WHERE user_id = %s""",
        person.id,
    )

    async def is_known() -> bool:
        statement = "SELECT tier = 'enterprise' FROM agents.entitlements WHERE user_id = %s"
        return bool(find(stack.environment(), statement, person.id))

    await eventually(is_known, within_s=20)
