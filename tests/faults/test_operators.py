"""Faults on a live stack: the alert fires, doctor names the same, and both are well after the heal."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Final

import httpx
import psycopg
import pytest
import yaml

from ops.home import ROOT
from ops.stack.stack import Stack
from tests.faults.hands import frozen, superuser
from tests.harness.live import Person, park_one, run_to_its_end, signed_up, used
from tests.harness.operator import Operator
from tests.harness.patience import eventually
from tests.harness.prometheus import Prometheus, prometheus_of

ALERTS: Final[dict[str, dict[str, str]]] = {
    rule["alert"]: rule["labels"]
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}


@pytest.fixture
def operator(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(stack, capsys)


@pytest.fixture(scope="module")
async def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Prometheus, None]:
    async with prometheus_of(stack, tmp_path_factory.mktemp("prometheus")) as one:
        yield one


def engine_away(program: str) -> Callable[[Stack], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def fault(stack: Stack) -> AsyncGenerator[None, None]:
        with frozen(stack, program):
            yield

    return fault


def sick_row(make: str, heal: str) -> Callable[[Stack], AbstractAsyncContextManager[None]]:
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
    async with signed_up(stack.environment()) as person:
        path, right = "/auth/v1/token", {"email": person.email, "password": "correct horse battery"}
        session = (await person.client.post(f"{path}?grant_type=password", json=right)).json()
        for number in range(25):
            body = {"email": f"nobody-{number}@example.com", "password": "no-such-password"}
            assert (await person.client.post(f"{path}?grant_type=password", json=body)).status_code == 400
        yield
        for _ in range(300):  # people come in again
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
    """Metering stands still, and whoever asks for their usage is refused: one again and again."""
    over = asyncio.Event()
    statuses: list[int] = []
    async with signed_up(stack.environment()) as person, asyncio.TaskGroup() as group:

        async def ask_on() -> None:
            ending = asyncio.ensure_future(over.wait())
            while not over.is_set():
                statuses.append((await person.client.get("/v1/usage")).status_code)
                await asyncio.wait({ending}, timeout=0.1)

        with frozen(stack, "metering"):
            group.create_task(ask_on())
            yield
            over.set()
        assert set(statuses) == {503}
        await good_answers(person, 25 * len(statuses))


async def good_answers(person: Person, count: int) -> None:
    """So many that the few bad ones before no longer count."""
    for _ in range(0, count, 10):
        asked = (person.client.get("/auth/v1/.well-known/jwks.json") for _ in range(10))
        assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}


def waits_behind_an_open_transaction(run: str) -> Callable[[Stack], AbstractAsyncContextManager[None]]:
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


Fault = Callable[[Stack], AbstractAsyncContextManager[None]]
# alert: (the fault, the check that doctor shows). These need the house to themselves.
ONE_BY_ONE: Final[Mapping[str, tuple[Fault, str]]] = {
    "ResponseTimes": (slow_answers, "answer_p95_ms"),
    "ErrorRate": (no_answers, "errors_percent"),
    "ServiceDown": (service_killed, "answers"),
    "DatabaseUnreachable": (engine_away("postgres"), "database"),
    "RedisUnreachable": (engine_away("redis"), "redis"),
    "QueueWithoutConsumer": (engine_away("rabbitmq"), "queues_with_consumer"),
    "WebhookFailures": (forged_webhooks, "webhook_failures"),
    "AuthenticationFailures": (wrong_passwords, "auth_failures_percent"),
}
# These do not touch one another, and are looked at side by side.
SIDE_BY_SIDE: Final[Mapping[str, tuple[Fault, str]]] = {
    "ParkedMessages": (parked, "parked_messages"),
    "UsageDrift": (counter_written_by_hand, "usage_drift"),
    "UsersAtLimits": (user_at_a_limit, "users_at_limits"),
    "OutboxNotSent": (
        sick_row(
            """INSERT INTO metering.outbox (id, type, data, created_at, claimed_until)
               VALUES (public.uuid_v7(), 'metering.nobody_wants_this.v1', '{}', now() - interval '5 minutes',
                       now() + interval '1 hour')""",
            "DELETE FROM metering.outbox WHERE type = 'metering.nobody_wants_this.v1'",
        ),
        "outbox_oldest_unsent_s",
    ),
    "MailNotSent": (
        sick_row(
            """INSERT INTO gateway.mails (id, address, letter, content, created_at, next_attempt_at)
               VALUES (public.uuid_v7(), 'x@example.com', 'confirmation', '{}', now() - interval '1 hour',
                       now() + interval '1 hour')""",
            "DELETE FROM gateway.mails WHERE address = 'x@example.com'",
        ),
        "mail_oldest_unsent_s",
    ),
    "StripeDrift": (
        sick_row(
            """INSERT INTO billing.drift (object_id, what, ours, theirs, seen_by)
               VALUES ('sub_lost', 'missing', 'null', '{}', public.uuid_v7())""",
            "DELETE FROM billing.drift WHERE object_id = 'sub_lost'",
        ),
        "stripe_drift",
    ),
    "StripeEventsUnhandled": (
        sick_row(
            """INSERT INTO billing.stripe_events (id, type, object_id, livemode, created, payload, received_at)
               VALUES ('evt_stuck', 'customer.updated', 'cus_stuck', false, now(), '{}', now() - interval '1 hour')""",
            "DELETE FROM billing.stripe_events WHERE id = 'evt_stuck'",
        ),
        "stripe_events_unhandled_oldest_s",
    ),
    "ReconcileOverdue": (
        sick_row(
            "UPDATE billing.reconciliations SET finished_at = finished_at - interval '3 days'",
            "UPDATE billing.reconciliations SET finished_at = finished_at + interval '3 days'",
        ),
        "reconciled_age_s",
    ),
    "ErasureOverdue": (
        sick_row(
            """INSERT INTO billing.erasures (user_id, requested_at, due_at) VALUES
               ('00000000-0000-7000-8000-0000000000f1', now() - interval '1 hour', now() + interval '1 hour')""",
            "DELETE FROM billing.erasures WHERE user_id = '00000000-0000-7000-8000-0000000000f1'",
        ),
        "erasures_oldest_s",
    ),
    "UsageNotReported": (
        sick_row(
            """INSERT INTO billing.usage_reports
                   (hold_id, metric, user_id, stripe_customer_id, meter, identifier, value, used_at, leased_until)
               VALUES (public.uuid_v7(), 'tokens', public.uuid_v7(), 'cus_stuck', 'tokens', 'stuck', 1,
                   now() - interval '2 hours', now() + interval '1 hour')""",
            "DELETE FROM billing.usage_reports WHERE identifier = 'stuck'",
        ),
        "usage_unreported_oldest_s",
    ),
    "LeasesExpired": (
        waits_behind_an_open_transaction(
            """INSERT INTO agent_runs
                   (id, user_id, agent_type, task, status, max_output_tokens, attempt, lease_expires_at)
               VALUES (public.uuid_v7(), %s, 'suggestion', 'Left alone', 'running', 10, 1, now() - interval '1 hour')"""
        ),
        "expired_lease_oldest_s",
    ),
    "ProposalsUnanswered": (
        sick_row(
            """WITH event AS (
                   INSERT INTO background_events (id, user_id, source, kind, endpoint_id, delivery_id)
                   VALUES (public.uuid_v7(), 'nobody', 'github', 'push', public.uuid_v7(), 'stuck') RETURNING id
               )
               INSERT INTO agents.proposals (run_id, user_id, background_event_id, task, max_output_tokens, created_at)
               SELECT public.uuid_v7(), 'nobody', id, 'Look', 10, now() - interval '1 hour' FROM event""",
            "DELETE FROM background_events WHERE delivery_id = 'stuck'",
        ),
        "proposal_oldest_unanswered_s",
    ),
}
# The same fault, on a user of which nothing else is running.
NEXT: Final[Mapping[str, tuple[Fault, str]]] = {
    "RunsUnserved": (
        waits_behind_an_open_transaction(
            """INSERT INTO agent_runs (id, user_id, agent_type, task, max_output_tokens, queued_at)
               VALUES (public.uuid_v7(), %s, 'suggestion', 'Wait', 10, now() - interval '1 hour')"""
        ),
        "waiting_run_unserved_s",
    ),
}
FAULTS: Final[Mapping[str, tuple[Fault, str]]] = {**ONE_BY_ONE, **SIDE_BY_SIDE, **NEXT}
# Shown by `promtool` alone: breaking these for real needs a full disk, a provider or another clock.
BY_RULE_ALONE: Final = {"DiskFull", "HoldsNotSwept", "ModelsUnavailable", "ClockOff"}


def test_every_alert_has_its_fault_or_says_that_it_has_none() -> None:
    assert set(ALERTS) == set(FAULTS) | BY_RULE_ALONE


TOGETHER: Final = [
    *(pytest.param((alert,), id=alert) for alert in ONE_BY_ONE),
    pytest.param(tuple(SIDE_BY_SIDE), id="side by side"),
    pytest.param(tuple(NEXT), id="RunsUnserved"),
]


@pytest.mark.parametrize("alerts", TOGETHER)
async def test_an_alert_fires_and_doctor_names_the_same_and_both_are_well_after_the_heal(
    alerts: tuple[str, ...], stack: Stack, operator: Operator, prometheus: Prometheus
) -> None:
    wanted = {(FAULTS[alert][1], ALERTS[alert]["runbook"]) for alert in alerts}

    async def named() -> set[tuple[str, str]]:
        answer = await asyncio.to_thread(operator.venture, "doctor", "--json")
        ill = [row for row in answer.json["checks"] if row["status"] in {"failed", "warning"}]
        print([(row["where"], row["check"], row["value"]) for row in ill])
        return {(row["check"], row["runbook"]) for row in ill}

    async def all_are_told() -> bool:
        firing = await prometheus.firing()
        told = {(label["check"], label["runbook"]) for alert in alerts for label in firing.get(alert, ())}
        return wanted <= told and wanted <= await named()

    async def all_is_well() -> bool:
        """Shares of the last five minutes may still tell of the fault before this one."""
        return not set(alerts) & set(await prometheus.firing()) and not wanted & await named()

    await eventually(all_is_well, within_s=60, every_s=0.5)
    async with AsyncExitStack() as faults:
        for alert in alerts:
            await faults.enter_async_context(FAULTS[alert][0](stack))
        await eventually(all_are_told, within_s=90, every_s=0.5)
    await eventually(all_is_well, within_s=90, every_s=0.5)
