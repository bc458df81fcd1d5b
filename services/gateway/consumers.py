"""Events the gateway consumes: plans into profiles, erasures into their record, the rest told to users."""

import asyncio
from collections.abc import Collection, Sequence
from typing import Any, Final
from uuid import UUID

import structlog

from libs.common.broker import Handler, ManyHandler, Subscription
from libs.common.database import Connection
from libs.common.events import Event, agents, billing, gateway, metering
from libs.common.redis import Redis, RedisError
from services.gateway.accounts import queries
from services.gateway.accounts.domain import user_channel
from services.gateway.mail import queries as mail
from services.gateway.sessions import StandingCache

log = structlog.get_logger(__name__)

# What each event is called in the user's stream, and which of its facts are told there.
_TOLD: Final[dict[type[Event], str]] = {
    gateway.EntitlementsChanged: "entitlements.changed",
    billing.PaymentFailed: "billing.payment_failed",
    billing.InvoicePaid: "billing.invoice_paid",
    metering.UsageSettled: "usage.settled",
    metering.ThresholdReached: "usage.threshold_reached",
    agents.RunStarted: "run.started",
    agents.RunFinished: "run.finished",
    agents.BackgroundEventReceived: "background_event.received",
}
_ALL: Final = 100
_WITHHELD: Final = {"stripe_customer_id", "user_id"}


class Announcer:
    """Hints to open streams, through Redis, after the row they point to has committed; losing one costs a second."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._pending: set[UUID] = set()
        self._woken = asyncio.Event()

    def note(self, user_id: UUID) -> None:
        self._pending.add(user_id)

    def wake(self) -> None:
        self._woken.set()

    async def run(self) -> None:
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._pending:
                user_ids, self._pending = self._pending, set()
                try:
                    await self._publish(user_ids)
                except (RedisError, OSError, TimeoutError) as error:
                    log.info("hint_lost", error=type(error).__name__)

    async def _publish(self, user_ids: Collection[UUID]) -> None:
        async with self._redis.pipeline(transaction=False) as pipe:
            for user_id in user_ids:
                pipe.publish(user_channel(user_id), b"1")  # pyright: ignore[reportUnknownMemberType]
            await pipe.execute()


def _tell(event_type: type[Event], announcer: Announcer, standings: StandingCache) -> ManyHandler:
    name = _TOLD[event_type]

    async def on_told(events: Sequence[Any], conn: Connection) -> None:
        # One statement for a batch: with one for each, lanes with a user in common held each other up (bench.runs).
        await queries.insert_user_events(
            conn, [(it.user_id, name, it.model_dump(mode="json", exclude=_WITHHELD)) for it in events]
        )
        for event in events:
            announcer.note(event.user_id)
            if isinstance(event, gateway.EntitlementsChanged):
                standings.forget(event.user_id)

    return on_told


def _tell_failed_payment(tell: ManyHandler, billing_page: str) -> ManyHandler:
    """A failed payment ends a plan within days: the user learns of it also without looking at the product."""

    async def on_payment_failed(events: Sequence[billing.PaymentFailed], conn: Connection) -> None:
        await tell(events, conn)
        for event in events:
            # The page where it can be paid, else ours, where the customer portal opens: its own links live minutes.
            content = {"link": event.invoice_url or billing_page, "portal": billing_page}
            await mail.insert_mail_to_user(conn, user_id=event.user_id, letter="payment_failed", content=content)

    return on_payment_failed


def _tell_threshold(tell: ManyHandler, plans_page: str) -> ManyHandler:
    """Who comes near a limit, or to it, learns of it by mail; unless they declined, or the next letter says more."""

    async def on_threshold_reached(events: Sequence[metering.ThresholdReached], conn: Connection) -> None:
        await tell(events, conn)
        for event in events:
            is_at_limit = event.used >= event.limit
            if is_at_limit != (event.percent >= _ALL) or not await mail.wants_usage_mail(conn, event.user_id):
                continue
            content = {
                "metric": event.metric.replace("_", " "),
                "percent": event.percent,
                "resets_on": f"{event.period_end:%Y-%m-%d}",
                "link": plans_page,
            }
            letter = "usage_at_limit" if is_at_limit else "usage_near_limit"
            await mail.insert_mail_to_user(conn, user_id=event.user_id, letter=letter, content=content)

    return on_threshold_reached


def _told(event: type[Event], many: ManyHandler, announcer: Announcer) -> Subscription:
    async def handler(event: Any, conn: Connection) -> None:
        await many([event], conn)

    # A plan that was just paid for is not to wait; whoever looks at a run follows its own stream.
    lingers = event is not gateway.EntitlementsChanged
    return Subscription(event=event, handler=handler, many=many, lingers=lingers, wake=announcer.wake)


async def on_subscription_changed(event: billing.SubscriptionChanged, conn: Connection) -> None:
    await queries.apply_subscription(conn, event)


def _erased(service: str) -> Handler:
    async def on_user_erased(event: Any, conn: Connection) -> None:
        await queries.mark_erased(conn, user_id=event.user_id, service=service)

    return on_user_erased


def subscriptions(announcer: Announcer, standings: StandingCache, *, frontend_url: str) -> Sequence[Subscription]:
    told = {event_type: _tell(event_type, announcer, standings) for event_type in _TOLD}
    frontend = frontend_url.rstrip("/")
    told[billing.PaymentFailed] = _tell_failed_payment(told[billing.PaymentFailed], f"{frontend}/billing")
    told[metering.ThresholdReached] = _tell_threshold(told[metering.ThresholdReached], f"{frontend}/pricing")
    return (
        Subscription(event=billing.SubscriptionChanged, handler=on_subscription_changed),
        Subscription(event=billing.UserErasedByBilling, handler=_erased("billing")),
        Subscription(event=metering.UserErasedByMetering, handler=_erased("metering")),
        Subscription(event=agents.UserErasedByAgents, handler=_erased("agents")),
        *(_told(event_type, many, announcer) for event_type, many in told.items()),
    )
