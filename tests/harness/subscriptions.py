"""What each service consumes, out of the services' own tables: a subscription added there is added here, too."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

import redis.asyncio

from libs.common.broker import Subscription, queue_name
from libs.common.events import Event
from libs.common.plans import load_plans
from services.agents import consumers as agents
from services.billing import consumers as billing
from services.gateway import consumers as gateway
from services.gateway.sessions import StandingCache
from services.metering import consumers as metering
from tests.builders import metered_plans


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscribed:
    service: str
    subscription: Subscription

    @property
    def event(self) -> type[Event]:
        return self.subscription.event

    @property
    def queue(self) -> str:
        return queue_name(self.service, self.event.type)

    def __str__(self) -> str:
        return self.queue


@cache
def tables() -> dict[str, Sequence[Subscription]]:
    """By service. Nothing is connected: the gateway's hints go to a Redis client that nobody runs."""
    announcer = gateway.Announcer(redis.asyncio.Redis())
    return {
        "gateway": gateway.subscriptions(announcer, StandingCache(), frontend_url="https://app.example.com"),
        "billing": billing.subscriptions(has_payments=True, plans=metered_plans(), wake=_nothing),
        "metering": metering.subscriptions(load_plans()),
        "agents": agents.subscriptions(wake=_nothing),
    }


def _nothing() -> None:
    """Stands in for rousing a loop that does not run here."""


def all_subscribed() -> list[Subscribed]:
    return [Subscribed(service=name, subscription=one) for name, table in tables().items() for one in table]


ALL: Final = all_subscribed()
