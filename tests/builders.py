"""Builders with defaults: a test names only what matters to it."""

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Final, Literal, TypeVar, Union, get_args, get_origin
from uuid import UUID

from libs.common.events import Event
from libs.common.ids import new_id
from libs.common.plans import Metered, Plans, load_plans

EventT = TypeVar("EventT", bound=Event)

METER: Final = "tokens_used"

# What makes sense under a field's name, in whichever event it stands.
_BY_NAME: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "tier": "pro",
        "status": "active",
        "metric": "runs",
        "currency": "usd",
        "agent_type": "suggestion",
        "task": "Plan the launch of our invoice reminder for small agencies.",
        "amounts": {"runs": 1, "tokens": 900},
        "profile": {"name": "Ada"},
        "vibe": {"playfulness": 70},
        "version": 2,
    }
)
_STRIPE_IDS: Final[Mapping[str, str]] = MappingProxyType({"stripe_customer_id": "cus_", "stripe_invoice_id": "in_"})
_BY_TYPE: Final[Mapping[Any, Any]] = MappingProxyType(
    {str: "example", int: 7, bool: True, datetime: datetime(2026, 11, 23, 12, tzinfo=UTC), dict: {}}
)


def an_event(event_class: type[EventT], **facts: Any) -> EventT:
    """An event with every field filled, optional ones too, from the schema it declares."""
    filled = {
        name: _example(name, field.annotation)
        for name, field in event_class.model_fields.items()
        if name not in Event.model_fields
    }
    return event_class.model_validate({**filled, **facts})


def _example(name: str, annotation: Any) -> Any:
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name in _STRIPE_IDS:
        return f"{_STRIPE_IDS[name]}{new_id().hex}"
    origin = get_origin(annotation)
    if origin is Literal:
        return get_args(annotation)[0]
    if origin in (Union, UnionType):
        return _example(name, next(it for it in get_args(annotation) if it is not NoneType))
    if annotation is UUID:
        return new_id()
    kind = origin or annotation
    if kind not in _BY_TYPE:
        raise TypeError(f"no example for the field {name} of type {annotation}: add one here")
    return _BY_TYPE[kind]


def metered_plans() -> Plans:
    """Those we ship, with tokens of the pro plan charged by use."""
    plans = load_plans()
    metered = {"tokens": Metered(meter=METER, stripe_lookup_key="pro_tokens")}
    return Plans(tiers={**plans.tiers, "pro": plans.tiers["pro"].model_copy(update={"metered": metered})})
