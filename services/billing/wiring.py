"""Composition root of billing: settings in, running parts out, all closed on exit."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from typing import Final
from uuid import UUID

from libs.common.backbone import Backbone, open_backbone
from libs.common.clock import Clock, system_clock
from libs.common.health import Check, Finding, at_most
from libs.common.plans import Plans, load_plans
from libs.common.process import Loop, Service
from services.billing import drift_queries, erasure_queries, usage_queries, work_queries
from services.billing.api import Routes, StripeSide
from services.billing.checkout import Desk
from services.billing.consumers import subscriptions
from services.billing.domain import Rules
from services.billing.intake import PATH as WEBHOOK
from services.billing.intake import Intake, WebhookEndpoint
from services.billing.jobs import Reviewer, StripeSync
from services.billing.operator_api import OperatorRoutes
from services.billing.ports import Payments
from services.billing.price_list import PriceList
from services.billing.reconcile import Reconciler
from services.billing.retention import Retention
from services.billing.settings import Settings
from services.billing.stripe_payments import open_stripe
from services.billing.usage_reporter import UsageReporter

MAX_UNHANDLED_S: Final = 300
MAX_UNREPORTED_S: Final = 3_600
MAX_RECONCILED_AGE_S: Final = 2 * 86_400
"""A night may be missed, two may not."""


@asynccontextmanager
async def build(
    settings: Settings, *, payments: Payments | None = None, plans: Plans | None = None, clock: Clock = system_clock
) -> AsyncGenerator[Service, None]:
    """Open billing. `payments` stands in for Stripe; without it and without a key, billing is switched off."""
    rules = Rules(plans=plans or load_plans(), grace=timedelta(days=settings.billing_grace_days))
    async with AsyncExitStack() as stack:
        if payments is None and settings.stripe_secret_key is not None:
            payments = await stack.enter_async_context(
                open_stripe(
                    settings.stripe_key, api_base=settings.stripe_api_base, calls_per_s=settings.stripe_calls_per_s
                )
            )
        woken = asyncio.Event()
        backbone = await stack.enter_async_context(
            open_backbone(
                settings,
                service="billing",
                subscriptions=subscriptions(has_payments=payments is not None, plans=rules.plans, wake=woken.set),
                clock=clock,
            )
        )
        own_loops: list[Loop] = [
            Reviewer(backbone.database, rules).run,
            Retention(backbone.database, keep_days=settings.billing_event_keep_days).run,
        ]
        stripe_side: StripeSide | None = None
        intake: Intake | None = None
        rousers: list[Callable[[], None]] = []
        if payments is not None:
            intake = Intake(backbone.database, wake=woken.set)
            sync = StripeSync(backbone.database, payments, rules, woken=woken)
            reconciler = Reconciler(backbone.database, payments, rules, sync)
            own_loops += [sync.run, reconciler.run, UsageReporter(backbone.database, payments).run]
            rousers += [woken.set, reconciler.woken.set]
            stripe_side = _stripe_side(Desk(backbone.database, payments, rules), PriceList(payments, rules.plans))
        routes = Routes(backbone.database, rules.plans, frontend_url=settings.frontend_url, stripe=stripe_side)
        checks = [*backbone.checks(), *_checks(backbone, is_enabled=payments is not None)]
        app = backbone.new_app(checks)
        app.include_router(routes.router())
        app.include_router(OperatorRoutes(backbone.database, rules, wake=_all_of(rousers)).router())
        yield Service(
            name="billing",
            app=backbone.edge(WebhookEndpoint(app, intake, secrets=settings.webhook_secrets, is_live=settings.is_live)),
            health_app=backbone.health_app(checks),
            common_loops=backbone.common_loops,
            worker_loops=[*backbone.worker_loops, *own_loops],
        )


def _all_of(rousers: Sequence[Callable[[], None]]) -> Callable[[], None] | None:
    def rouse() -> None:
        for one in rousers:
            one()

    return rouse if rousers else None


def _stripe_side(desk: Desk, prices: PriceList) -> StripeSide:
    async def open_portal(user_id: UUID, return_url: str) -> str:
        return await desk.open_portal(user_id, return_url=return_url)

    return StripeSide(open_checkout=desk.open_checkout, open_portal=open_portal, prices=prices.current)


def _checks(backbone: Backbone, *, is_enabled: bool) -> list[Check]:
    async def check_stripe() -> Finding:
        return Finding(status="ok" if is_enabled else "disabled", value=None if is_enabled else "no STRIPE_SECRET_KEY")

    async def check_unhandled() -> Finding:
        async with backbone.database.transaction() as conn:
            return at_most(await work_queries.oldest_unhandled_s(conn), MAX_UNHANDLED_S)

    async def check_unclaimed() -> Finding:
        # Shown, not failed: money that gives nobody a plan is an operator's to look at, and no outage.
        async with backbone.database.transaction() as conn:
            return Finding(status="ok", value=await work_queries.count_unclaimed(conn))

    async def check_erasures() -> Finding:
        async with backbone.database.transaction() as conn:
            return at_most(await erasure_queries.oldest_erasure_s(conn), MAX_UNHANDLED_S)

    async def check_webhook() -> Finding:
        return at_most(backbone.traffic.count(lambda route, status: route == WEBHOOK and status >= 400), 0)  # noqa: PLR2004

    async def check_drift() -> Finding:
        async with backbone.database.transaction() as conn:
            return at_most(await drift_queries.count_drift_to_mend(conn), 0)

    async def check_reconciliation() -> Finding:
        async with backbone.database.transaction() as conn:
            age_s = await drift_queries.last_finished_age_s(conn)
        return at_most(age_s, MAX_RECONCILED_AGE_S) if age_s is not None else Finding(status="ok", value="never yet")

    checks = [Check(name="stripe", probe=check_stripe, runbook="disable-billing")]
    if is_enabled:
        checks += [
            Check(
                name="stripe_events_unhandled_oldest_s", probe=check_unhandled, runbook="billing-webhook-not-working"
            ),
            # Anybody can send what we refuse, so it warns; the alert says the same.
            Check(name="webhook_failures", probe=check_webhook, runbook="billing-webhook-not-working", warns_only=True),
            Check(name="stripe_subscriptions_unclaimed", probe=check_unclaimed, runbook="common-stripe-issues"),
            Check(name="stripe_drift", probe=check_drift, runbook="stripe-drift"),
            Check(name="reconciled_age_s", probe=check_reconciliation, runbook="stripe-drift"),
            *_usage_checks(backbone),
            Check(name="erasures_oldest_s", probe=check_erasures, runbook="delete-user-data"),
        ]
    return checks


def _usage_checks(backbone: Backbone) -> list[Check]:
    async def check_usage() -> Finding:
        async with backbone.database.transaction() as conn:
            return at_most(await usage_queries.oldest_waiting_s(conn), MAX_UNREPORTED_S)

    async def check_refused_usage() -> Finding:
        # Shown, not failed: it can be reported again, and nobody is kept from anything meanwhile.
        async with backbone.database.transaction() as conn:
            return Finding(status="ok", value=await usage_queries.count_refused(conn))

    return [
        Check(name="usage_unreported_oldest_s", probe=check_usage, runbook="stripe-drift"),
        Check(name="usage_refused", probe=check_refused_usage, runbook="stripe-drift"),
    ]
