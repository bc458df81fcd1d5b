"""Work for every job of every service: what lies ready, how the job is started, and what it must have come to."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, LiteralString
from uuid import UUID

from libs.common.database import Database
from libs.common.events.metering import UsageSettled
from libs.common.plans import load_plans
from libs.common.process import Loop
from services.agents.ports import NoExtension
from services.agents.runs.domain import Run, RunEvent
from services.agents.runs.execution import Engine
from services.agents.runs.ingredients import AtomShelf
from services.agents.runs.jobs import EventSweeper, RunWorker
from services.agents.runs.lease_queries import Caps
from services.agents.runs.scribe import Scribe
from services.billing import operations as billing
from services.billing import usage_operations, work_queries
from services.billing.checkout import Desk
from services.billing.domain import Purchase, Rules
from services.billing.jobs import Reviewer, StripeSync
from services.billing.usage_reporter import UsageReporter
from services.gateway.jobs import Housekeeper
from services.gateway.mail.jobs import MailSender
from services.metering import operations as metering
from services.metering.domain import Metric
from services.metering.jobs import HoldSweeper
from services.metering.repairs.jobs import LedgerWatch
from tests.builders import metered_plans
from tests.fakes.payments import NOW, FakePayments
from tests.harness.database import TestDatabase
from tests.integration.agents.workshop import FakeModel, request_run
from tests.integration.standing.letterbox import open_letterbox
from tests.integration.standing.mortality import Mortality

RULES: Final = Rules(plans=load_plans(), grace=timedelta(days=7))
ADA: Final = UUID("00000000-0000-7000-8000-00000000000a")
BOB: Final = UUID("00000000-0000-7000-8000-00000000000b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Workplace:
    """The service's own database, the superuser's view of it, and a Stripe that outlives the job."""

    database: Database
    rows: TestDatabase
    payments: FakePayments = field(default_factory=FakePayments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """`outcome` is what must be the same whether the job was killed or not; `later` lets its leases run out."""

    job: type
    service: str
    prepare: Callable[[Workplace], Awaitable[None]]
    start: Callable[[Workplace, Mortality], Sequence[Loop]]
    is_done: LiteralString
    outcome: Sequence[LiteralString]
    later: Sequence[LiteralString] = ()


# Billing --------------------------------------------------------------------------------------------------------------


async def _buy(place: Workplace, user_id: UUID) -> str:
    purchase = Purchase(user_id=user_id, email=None, tier="pro", success_url="https://a/", cancel_url="https://a/")
    link = await Desk(place.database, place.payments, RULES).open_checkout(purchase)
    subscription_id, _ = place.payments.complete(link.id)
    async with place.database.transaction() as conn:
        await work_queries.request_refresh(conn, subscription_id)
    return subscription_id


def _a_sync(place: Workplace) -> StripeSync:
    return StripeSync(place.database, place.payments, RULES, woken=asyncio.Event())


async def _one_buys_and_one_leaves(place: Workplace) -> None:
    await _buy(place, BOB)
    await _a_sync(place).run_once()
    await _buy(place, ADA)
    async with place.database.transaction() as conn:
        await billing.request_erasure(conn, user_id=BOB, profile_customer_id=None, has_payments=True)


def _sync(place: Workplace, mortality: Mortality) -> Sequence[Loop]:
    payments = mortality.port(place.payments)
    return (StripeSync(mortality.database(place.database), payments, RULES, woken=asyncio.Event()).run,)


async def _two_stopped_paying(place: Workplace) -> None:
    for user_id in (ADA, BOB):
        await _buy(place, user_id)
    await _a_sync(place).run_once()
    await place.rows.execute(
        "UPDATE billing.subscriptions SET status = 'past_due', past_due_since = now() - interval '8 days'"
    )
    await place.rows.execute("UPDATE billing.accounts SET review_at = now() - interval '1 s'")


def _review(place: Workplace, mortality: Mortality) -> Sequence[Loop]:
    return (Reviewer(mortality.database(place.database), RULES).run,)


async def _three_settlements(place: Workplace) -> None:
    await _buy(place, ADA)
    await _a_sync(place).run_once()
    for number in range(3):
        event = UsageSettled(
            user_id=ADA,
            hold_id=UUID(int=number + 1),
            amounts={"tokens": 10 + number},
            period_start=NOW,
            occurred_at=NOW,
        )
        async with place.database.transaction() as conn:
            await usage_operations.record_usage(conn, [event], plans=metered_plans())


def _report_usage(place: Workplace, mortality: Mortality) -> Sequence[Loop]:
    return (UsageReporter(mortality.database(place.database), mortality.port(place.payments)).run,)


_PLANS: Final = (
    "SELECT user_id, tier, status, version FROM billing.accounts ORDER BY 1",
    "SELECT type, subject, data - 'user_id' AS data FROM billing.outbox ORDER BY type, subject, id",
)

# Metering -------------------------------------------------------------------------------------------------------------


async def _three_runs_vanished(place: Workplace) -> None:
    for number in range(3):
        async with place.database.transaction() as conn:
            await metering.reserve_usage(
                conn,
                RULES.plans,
                hold_id=UUID(int=number + 1),
                user_id=ADA,
                amounts={Metric.RUNS: 1, Metric.TOKENS: 100},
                is_confirmed=True,
            )
    await place.rows.execute("UPDATE metering.holds SET expires_at = now() - interval '1 s'")


def _sweep(place: Workplace, mortality: Mortality) -> Sequence[Loop]:
    return (HoldSweeper(mortality.database(place.database), lambda: None, interval_s=0.01).run,)


async def _one_uses_far_more_than_ever(place: Workplace) -> None:
    await place.rows.execute(
        """
        INSERT INTO metering.usage_ledger
            (source, event_id, user_id, metric_type, amount, kind, period_start, occurred_at)
        SELECT 'x', age, $1, 'tokens', n, 'usage', metering.period_start(now() - age::interval), now() - age::interval
        FROM (VALUES ('4 days', 7000), ('60 s', 900000)) AS used(age, n)
        """,
        str(ADA),
    )


def _watch_the_ledger(place: Workplace, mortality: Mortality) -> Sequence[Loop]:
    return (LedgerWatch(mortality.database(place.database), RULES.plans, interval_s=0.01).run,)


# Gateway --------------------------------------------------------------------------------------------------------------


async def _old_and_new_rows(place: Workplace) -> None:
    await place.rows.execute("INSERT INTO auth.users (id, email) VALUES ($1, 'ada@example.com')", ADA)
    await place.rows.execute(
        """
        INSERT INTO gateway.idempotency_keys (user_id, key, request_hash, resource_id, first_used_at, claimed_at)
        SELECT $1::uuid, age, ''::bytea, gen_random_uuid(), now() - age::interval, now() - age::interval
        FROM unnest(ARRAY['0 s', '5 minutes', '2 days', '3 days']) age
        UNION ALL
        SELECT $1, 'given back', '', gen_random_uuid(), now() - interval '23 hours', '-infinity'::timestamptz
        """,
        ADA,
    )
    await place.rows.execute(
        """
        INSERT INTO gateway.user_events (user_id, seq, type, data, at)
        SELECT $1, seq, age, '{}', now() - age::interval
        FROM unnest(ARRAY['0 s', '8 days', '9 days']) WITH ORDINALITY AS old(age, seq)
        """,
        ADA,
    )


def _keep_house(place: Workplace, mortality: Mortality) -> Sequence[Loop]:
    return (Housekeeper(mortality.database(place.database)).run,)


async def _two_letters_wait(place: Workplace) -> None:
    await place.rows.execute(
        """
        INSERT INTO gateway.mails (id, address, letter, content)
        SELECT gen_random_uuid(), address, 'recovery', '{"code": "123456", "link": "https://a/"}'
        FROM unnest(ARRAY['ada@example.com', 'bob@example.com']) address
        """
    )


def _send_mail(place: Workplace, mortality: Mortality) -> Sequence[Loop]:
    url, take_mail = open_letterbox()
    sender = MailSender(mortality.database(place.database), smtp_url=url, mail_from="desk@example.com")
    return (take_mail, sender.run)


# Agents ---------------------------------------------------------------------------------------------------------------


class Unwatched:
    """A mirror nobody looks into."""

    def offer(self, run_id: UUID, events: Sequence[RunEvent], *, ended: Run | None = None) -> None:
        del run_id, events, ended


async def _two_runs_were_asked_for(place: Workplace) -> None:
    for user_id in (ADA, BOB):
        await request_run(place.database, user_id)


async def _an_old_and_a_new_stream(place: Workplace) -> None:
    for user_id in (ADA, BOB):
        await request_run(place.database, user_id)
    await place.rows.execute(
        """
        UPDATE agents.run_events SET created_at = now() - interval '40 days'
        WHERE run_id = (SELECT id FROM agent_runs WHERE user_id = $1)
        """,
        str(ADA),
    )
    await place.rows.execute(
        """
        UPDATE agent_runs SET status = 'succeeded', finished_at = now() - interval '40 days' WHERE user_id = $1
        """,
        str(ADA),
    )


def _forget_streams(place: Workplace, mortality: Mortality) -> Sequence[Loop]:
    return (EventSweeper(database=mortality.database(place.database), keep_days=30).run,)


def _work(place: Workplace, mortality: Mortality) -> Sequence[Loop]:
    database = mortality.database(place.database)
    worker = RunWorker(
        name="mortal",
        engine=Engine(
            database=database,
            scribe=Scribe(database),
            shelf=AtomShelf(database),
            mirror=Unwatched(),
            choose_model=FakeModel().choose,
            holds=NoExtension(),
            first_token_limit_s=10,
            idle_limit_s=10,
            total_limit_s=30,
        ),
        caps=Caps(by_tier={}, default=1),
        capacity=2,
        lease_s=60,
        heartbeat_s=0.2,
        shutdown_grace_s=0.05,
        wake=asyncio.Event(),
    )
    return (worker.run, worker.watch)


WORK: Final = (
    Work(
        job=StripeSync,
        service="billing",
        prepare=_one_buys_and_one_leaves,
        start=_sync,
        is_done="SELECT NOT EXISTS (SELECT FROM billing.refreshes WHERE done < wanted)"
        " AND NOT EXISTS (SELECT FROM billing.erasures WHERE stripe_done_at IS NULL)",
        outcome=(
            *_PLANS,
            "SELECT id, user_id, status FROM billing.subscriptions ORDER BY 1",
            "SELECT user_id, stripe_customer_id FROM billing.customers ORDER BY 1",
            "SELECT user_id, stripe_done_at IS NOT NULL AS is_done FROM billing.erasures ORDER BY 1",
        ),
        later=(
            "UPDATE billing.refreshes SET leased_until = '-infinity', due_at = now()",
            "UPDATE billing.erasures SET due_at = now()",
        ),
    ),
    Work(
        job=Reviewer,
        service="billing",
        prepare=_two_stopped_paying,
        start=_review,
        is_done="SELECT NOT EXISTS (SELECT FROM billing.accounts WHERE review_at <= now())",
        outcome=_PLANS,
    ),
    Work(
        job=UsageReporter,
        service="billing",
        prepare=_three_settlements,
        start=_report_usage,
        is_done="SELECT NOT EXISTS (SELECT FROM billing.usage_reports WHERE state = 'waiting')",
        outcome=("SELECT hold_id, value, state FROM billing.usage_reports ORDER BY 1",),
        later=("UPDATE billing.usage_reports SET leased_until = '-infinity', due_at = now()",),
    ),
    Work(
        job=HoldSweeper,
        service="metering",
        prepare=_three_runs_vanished,
        start=_sweep,
        is_done="SELECT NOT EXISTS (SELECT FROM metering.holds WHERE state = 'held')",
        outcome=(
            "SELECT id, state, settled_at FROM metering.holds ORDER BY 1",
            "SELECT user_id, metric_type, metric_value, held_value FROM usage_metrics ORDER BY 1, 2",
            "SELECT count(*) FROM metering.usage_ledger",
            "SELECT type, data FROM metering.outbox ORDER BY id",
        ),
    ),
    Work(
        job=LedgerWatch,
        service="metering",
        prepare=_one_uses_far_more_than_ever,
        start=_watch_the_ledger,
        is_done="SELECT EXISTS (SELECT FROM metering.spikes)",
        outcome=("SELECT user_id, metric_type, amount, habit_per_hour FROM metering.spikes",),
    ),
    Work(
        job=Housekeeper,
        service="gateway",
        prepare=_old_and_new_rows,
        start=_keep_house,
        is_done="SELECT (SELECT count(*) FROM gateway.idempotency_keys) = 3"
        " AND (SELECT count(*) FROM gateway.user_events) = 1",
        outcome=(
            "SELECT key, claimed_at = '-infinity' AS is_given_back FROM gateway.idempotency_keys ORDER BY key",
            "SELECT type FROM gateway.user_events",
        ),
    ),
    Work(
        job=MailSender,
        service="gateway",
        prepare=_two_letters_wait,
        start=_send_mail,
        is_done="SELECT NOT EXISTS (SELECT FROM gateway.mails)",
        outcome=("SELECT address FROM gateway.mails",),
        later=("UPDATE gateway.mails SET next_attempt_at = now()",),
    ),
    Work(
        job=EventSweeper,
        service="agents",
        prepare=_an_old_and_a_new_stream,
        start=_forget_streams,
        is_done="SELECT count(*) = 1 FROM agents.run_events",
        outcome=("SELECT type FROM agents.run_events",),
    ),
    Work(
        job=RunWorker,
        service="agents",
        prepare=_two_runs_were_asked_for,
        start=_work,
        is_done="SELECT NOT EXISTS (SELECT FROM agent_runs WHERE status IN ('queued', 'running'))",
        outcome=(
            "SELECT user_id, status, output, input_tokens, output_tokens FROM agent_runs ORDER BY 1",
            # Another attempt starts again, and says so; it ends once, and is told once.
            "SELECT type, subject, data - 'run_id' AS data FROM agents.outbox WHERE type LIKE '%finished%' ORDER BY 2",
            "SELECT type, count(*) FROM agents.run_events WHERE type NOT IN ('run.started', 'run.delta') GROUP BY 1",
        ),
        later=("UPDATE agent_runs SET lease_expires_at = '-infinity' WHERE status = 'running'",),
    ),
)


async def outcome_of(work: Work, place: Workplace) -> list[Any]:
    world = {
        "customers": sorted(place.payments.customers),
        "usage": sorted(report.value for report in place.payments.usage.values()),
        "subscriptions": sorted((one.id, one.status) for one in place.payments.subscriptions.values()),
        "sessions": len(place.payments.sessions),
    }
    return [world, *[await place.rows.fetch(sql) for sql in work.outcome]]
