"""Faults on a live stack: the alert fires, doctor names the same, and both are well after the heal."""

import asyncio
import time
from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import pytest
import yaml
from llmock.testing import LLMockServer

from ops.home import ROOT
from ops.stack.stack import Stack
from tests.conftest import STACK_SETTINGS
from tests.faults.ailments import (
    Fault,
    clock_of_billing_off,
    counter_written_by_hand,
    disk_filled,
    engine_away,
    forged_webhooks,
    hold_behind_an_open_transaction,
    no_answers,
    parked,
    provider_out_of_order,
    service_killed,
    sick_row,
    slow_answers,
    user_at_a_limit,
    waits_behind_an_open_transaction,
    wrong_passwords,
)
from tests.faults.disks import place_for_a_home
from tests.faults.other_programs import FAKETIME
from tests.harness.operator import Operator
from tests.harness.patience import eventually
from tests.harness.prometheus import Prometheus, prometheus_of

ALERTS: Final[dict[str, dict[str, str]]] = {
    rule["alert"]: rule["labels"]
    for group in yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}


@pytest.fixture(scope="module")
def stack(provider: LLMockServer) -> Generator[Stack, None, None]:
    """A stack of its own, with what can be made ill: a disk that is soon full, and a model's provider."""
    settings = {
        **STACK_SETTINGS,
        "RATE_LIMIT_MAX_REQUESTS": "1000000",  # one who asks again and again is to be refused for want of metering
        "OPENAI_API_KEY": "sk-of-nobody-0123456789",
        "OPENAI_BASE_URL": provider.base_url("openai"),
        "AGENTS_MODELS": "openai:gpt-4o-mini",
    }
    with place_for_a_home() as place:
        stack = Stack(place / "home")
        try:
            stack.up(settings=settings)
            yield stack
        finally:
            stack.wipe()


@pytest.fixture
def operator(stack: Stack, capsys: pytest.CaptureFixture[str]) -> Operator:
    return Operator(stack, capsys)


@pytest.fixture(scope="module")
async def prometheus(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> AsyncGenerator[Prometheus, None]:
    async with prometheus_of(stack, tmp_path_factory.mktemp("prometheus")) as one:
        yield one


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
    "DiskFull": (disk_filled, "free_gb"),
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
            # Whether tonight's has been there yet depends on the hour: here one certainly was, three days ago.
            """WITH earlier AS (UPDATE billing.reconciliations SET finished_at = finished_at - interval '3 days')
               INSERT INTO billing.reconciliations (id, finished_at, last_error)
               VALUES (public.uuid_v7(), now() - interval '3 days', 'made up')""",
            """WITH gone AS (DELETE FROM billing.reconciliations WHERE last_error = 'made up')
               UPDATE billing.reconciliations SET finished_at = finished_at + interval '3 days'
               WHERE last_error IS DISTINCT FROM 'made up'""",
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
# Side by side as well, but after those: the first needs a user of whom nothing else is running.
NEXT: Final[Mapping[str, tuple[Fault, str]]] = {
    "RunsUnserved": (
        waits_behind_an_open_transaction(
            """INSERT INTO agent_runs (id, user_id, agent_type, task, max_output_tokens, queued_at)
               VALUES (public.uuid_v7(), %s, 'suggestion', 'Wait', 10, now() - interval '1 hour')"""
        ),
        "waiting_run_unserved_s",
    ),
    "HoldsNotSwept": (hold_behind_an_open_transaction, "holds_expired_unswept_s"),
    "ModelsUnavailable": (provider_out_of_order, "models"),
}
WITH_FAKETIME: Final[Mapping[str, tuple[Fault, str]]] = {"ClockOff": (clock_of_billing_off, "clock_off_s")}
FAULTS: Final[Mapping[str, tuple[Fault, str]]] = {**ONE_BY_ONE, **SIDE_BY_SIDE, **NEXT, **WITH_FAKETIME}


def test_every_alert_has_its_fault() -> None:
    assert set(ALERTS) == set(FAULTS)


TOGETHER: Final = [
    *(pytest.param((alert,), id=alert) for alert in ONE_BY_ONE),
    pytest.param(tuple(SIDE_BY_SIDE), id="side by side"),
    pytest.param((*NEXT, *(WITH_FAKETIME if FAKETIME.exists() else ())), id="side by side, later"),
]
if not FAKETIME.exists():
    without = pytest.mark.skip("a wrong clock needs the package faketime")
    TOGETHER.append(pytest.param(tuple(WITH_FAKETIME), id="ClockOff", marks=without))


class Watch:
    """Prometheus and doctor, asked about some alerts until they say the same; how long that took."""

    def __init__(self, alerts: tuple[str, ...], prometheus: Prometheus, operator: Operator) -> None:
        self._wanted = {alert: (FAULTS[alert][1], ALERTS[alert]["runbook"]) for alert in alerts}
        self._prometheus, self._operator = prometheus, operator
        self._ill: list[dict[str, Any]] = []

    async def all_are_told(self, times: "Times") -> bool:
        firing, named = await self._prometheus.firing(), await self._named()
        told = {
            alert
            for alert, it in self._wanted.items()
            if it in named and it in {(labels["check"], labels["runbook"]) for labels in firing.get(alert, ())}
        }
        times.note(told)
        return told == set(self._wanted)

    async def all_are_well(self, times: "Times") -> bool:
        firing, named = await self._prometheus.firing(), await self._named()
        well = {alert for alert, it in self._wanted.items() if it not in named and alert not in firing}
        times.note(well)
        return well == set(self._wanted)

    async def _named(self) -> set[tuple[str, str]]:
        answer = await asyncio.to_thread(self._operator.venture, "doctor", "--json")
        self._ill = [row for row in answer.json["checks"] if row["status"] in {"failed", "warning"}]
        return {(row["check"], row["runbook"]) for row in self._ill}

    def __str__(self) -> str:
        """What doctor said last."""
        return "; ".join(f"{row['where']} {row['check']} {row['value']}: {row['runbook']}" for row in self._ill)


class Times:
    """When each alert was first seen so, in seconds from here."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._first: dict[str, float] = {}

    def note(self, alerts: set[str]) -> None:
        for alert in alerts:
            self._first.setdefault(alert, time.monotonic() - self._began)

    def __str__(self) -> str:
        return ", ".join(f"{alert} {after:.0f} s" for alert, after in self._first.items())


@pytest.mark.parametrize("alerts", TOGETHER)
async def test_an_alert_fires_and_doctor_names_the_same_and_both_are_well_after_the_heal(
    alerts: tuple[str, ...], stack: Stack, operator: Operator, prometheus: Prometheus
) -> None:
    watch = Watch(alerts, prometheus, operator)
    # Shares of the last five minutes may still tell of the fault before this one.
    await eventually(partial(watch.all_are_well, Times()), within_s=60, every_s=0.5)
    async with AsyncExitStack() as faults:
        told = Times()
        for alert in alerts:
            await faults.enter_async_context(FAULTS[alert][0](stack))
        try:
            await eventually(partial(watch.all_are_told, told), within_s=90, every_s=0.5)
        except AssertionError as error:
            raise AssertionError(f"of {alerts} told were {told}; doctor said {watch}") from error
        said, well = str(watch), Times()
    await eventually(partial(watch.all_are_well, well), within_s=90, every_s=0.5)
    print(f"told after {told}\nwell after {well}\ndoctor said {said}")
