"""Faults on a live stack: doctor names the same check and section as the alert, and is well after the heal."""

import asyncio
import os
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import httpx
import psycopg
import pytest
import yaml

from ops.home import ROOT
from ops.stack.stack import Stack
from tests.harness.live import park_one, run_to_its_end, signed_up, used
from tests.harness.operator import Operator
from tests.harness.patience import eventually

ALERTS: Final[dict[str, dict[str, str]]] = {
    rule["alert"]: rule["labels"]
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}


@pytest.fixture
def operator(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(stack, capsys)


@contextmanager
def frozen(stack: Stack, program: str) -> Generator[None]:
    """Stopped by a signal: it holds its connections and answers nobody. The harshest way to be away."""
    pids = [stack.pid(program), *children(stack.pid(program))]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def children(pid: int) -> list[int]:
    """PostgreSQL's server processes go on answering while their postmaster is stopped."""
    listed = subprocess.run(("/usr/bin/pgrep", "-P", str(pid)), capture_output=True, text=True, check=False)
    return [int(child) for child in listed.stdout.split()]


def superuser(stack: Stack, statement: str, *values: Any) -> None:
    with psycopg.connect(stack.operator_environment()["SUPERUSER_DATABASE_URL"], autocommit=True) as conn:
        conn.execute(statement.encode(), values)


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
    environment = stack.environment()
    headers = {"apikey": environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"]}
    async with httpx.AsyncClient(base_url=environment["GATEWAY_URL"], headers=headers) as client:
        for number in range(25):
            body = {"email": f"nobody-{number}@example.com", "password": "no-such-password"}
            assert (await client.post("/auth/v1/token?grant_type=password", json=body)).status_code == 400
    yield
    await restart(stack, "gateway")


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
FAULTS: Final[Mapping[str, tuple[Fault, str]]] = {
    # alert: (the fault, the check that doctor shows)
    "ServiceDown": (service_killed, "answers"),
    "DatabaseUnreachable": (engine_away("postgres"), "database"),
    "RedisUnreachable": (engine_away("redis"), "redis"),
    "QueueWithoutConsumer": (engine_away("rabbitmq"), "queues_with_consumer"),
    "ParkedMessages": (parked, "parked_messages"),
    "WebhookFailures": (forged_webhooks, "webhook_failures"),
    "AuthenticationFailures": (wrong_passwords, "auth_failures_percent"),
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
}
# Shown by `promtool` alone: breaking these for real needs a loaded machine, a full disk or hours of silence.
BY_RULE_ALONE: Final = {
    "ErrorRate", "ResponseTimes", "UsageNotReported", "DiskFull", "HoldsNotSwept", "LeasesExpired", "RunsUnserved",
    "ProposalsUnanswered", "ModelsUnavailable", "ClockOff",
}  # fmt: skip


def test_every_alert_has_its_fault_or_says_that_it_has_none() -> None:
    assert set(ALERTS) == set(FAULTS) | BY_RULE_ALONE


async def metrics_say(stack: Stack, check: str) -> bool | None:
    """What an alert would see: whether some process's `venture_check_ok` of this check is 0; None if there is none."""
    lines: list[str] = []
    async with httpx.AsyncClient(timeout=5) as client:
        for url in stack.operator_environment()["METRICS_URLS"].split(","):
            lines += (await client.get(url)).text.splitlines()
    wanted = [line for line in lines if line.startswith("venture_check_ok") and f'check="{check}"' in line]
    values = [line.rpartition(" ")[2] for line in wanted]
    return "0.0" in values if values else None


@pytest.mark.parametrize("alert", list(FAULTS))
async def test_doctor_names_what_the_alert_names_and_is_well_after_the_heal(
    alert: str, stack: Stack, operator: Operator, tmp_path: Path
) -> None:
    fault, check = FAULTS[alert]

    async def examined() -> list[dict[str, Any]]:
        answer = await asyncio.to_thread(operator.venture, "doctor", "--json")
        return [row for row in answer.json["checks"] if row["status"] in {"failed", "warning"}]

    async def is_named() -> bool:
        return any(row["check"] == check and row["runbook"] == ALERTS[alert]["runbook"] for row in await examined())

    async def is_well() -> bool:
        """The share of errors of the last five minutes may still tell of the fault before this one."""
        ill = await examined()
        if [row for row in ill if row["status"] == "failed" or row["check"] == check]:
            print(ill)
            return False
        return True

    await eventually(is_well, within_s=60, every_s=0.5)
    async with fault(stack):
        await eventually(is_named, within_s=60, every_s=0.5)
        if check != "answers":

            async def alert_sees_it() -> bool:
                return await metrics_say(stack, check) is True

            await eventually(alert_sees_it, within_s=30, every_s=1)
    await eventually(is_well, within_s=90, every_s=0.5)

    async def alert_clears() -> bool:
        return await metrics_say(stack, check) is not True

    await eventually(alert_clears, within_s=30, every_s=1)


async def test_a_backup_comes_back_and_heals_what_was_under_way(
    stack: Stack, operator: Operator, tmp_path: Path
) -> None:
    """The drill: what was under way at the moment of the dump is handled after the restore; the gap is told."""
    environment = stack.environment()
    async with signed_up(environment) as before, signed_up(environment) as after:
        with frozen(stack, "metering"):  # its consumers hold back what the dump then has only in outboxes
            accepted = await asyncio.to_thread(operator.ok, "subscription", "set", before.id, "--tier", "pro", "--yes")
            assert accepted["tier"] == "pro"

            async def is_sent() -> bool:
                with psycopg.connect(environment["OPERATOR_DATABASE_URL"]) as conn:
                    row = conn.execute(
                        "SELECT count(*) FROM gateway.outbox WHERE subject = %s AND sent_at IS NULL", (before.id,)
                    ).fetchone()
                return row is not None and row[0] == 0

            await eventually(is_sent, within_s=15)
            await asyncio.to_thread(operator.ok, "backup", str(tmp_path / "backup"))
        await asyncio.to_thread(operator.ok, "subscription", "set", after.id, "--tier", "pro", "--yes")
        pids = {name: stack.pid(name) for name in ("gateway", "billing", "metering", "agents")}
        report = await asyncio.to_thread(operator.ok, "restore", str(tmp_path / "backup"), "--yes")
        assert report["sent_again"].get("metering.gateway.entitlements_changed.v1", 0) >= 1

        async def is_healed() -> bool:
            response = await before.client.get("/v1/usage")
            return response.status_code == 200 and response.json()["metrics"]["runs"]["limit"] == 1000

        await eventually(is_healed, within_s=60, every_s=0.5)
        shown = await asyncio.to_thread(operator.ok, "users", "show", after.id)
        assert shown["tier"] == "free", "what was only ours and came after the backup is the gap"
        assert (await asyncio.to_thread(operator.venture, "doctor", "--wait", "60")).code == 0
        assert {name: stack.pid(name) for name in pids} == pids, "services reconnect, they are not restarted"
    superuser(stack, f"DROP DATABASE {report['before']}")
