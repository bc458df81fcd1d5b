"""The catalogue of every event, one file per owner. JSON schemas are reviewed snapshots under tests/contracts/."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from libs.common.events import agents, billing, gateway, metering
from libs.common.events.base import BATCH_CONTENT_TYPE, CONTENT_TYPE, EncodedEvent, Envelope, Event, MalformedEvent

_ALL: Final[tuple[type[Event], ...]] = (
    gateway.UserCreated,
    gateway.UserDeleted,
    gateway.RunRequested,
    gateway.EntitlementsChanged,
    gateway.QuotaUsed,
    billing.SubscriptionChanged,
    billing.PaymentFailed,
    billing.InvoicePaid,
    billing.UserErasedByBilling,
    metering.UsageSettled,
    metering.ThresholdReached,
    metering.HoldGranted,
    metering.HoldDenied,
    metering.UserErasedByMetering,
    agents.RunStarted,
    agents.RunFinished,
    agents.RunProposed,
    agents.BackgroundEventReceived,
    agents.UserErasedByAgents,
)

CATALOGUE: Final[Mapping[str, type[Event]]] = MappingProxyType({event.type: event for event in _ALL})

__all__ = ["BATCH_CONTENT_TYPE", "CATALOGUE", "CONTENT_TYPE", "EncodedEvent", "Envelope", "Event", "MalformedEvent"]
