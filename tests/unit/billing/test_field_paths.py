"""Every field we read is declared by the SDK's classes, which are generated from the API version that it pins."""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import pytest
import stripe
from stripe.events import V1BillingMeterErrorReportTriggeredEvent

from services.billing.stripe_objects import (
    due_since,
    read_checkout,
    read_customer,
    read_invoice,
    read_price,
    read_subscription,
    read_usage_errors,
)

NAMED: Final = {"metadata": {"user_id": "01900000-0000-7000-8000-000000000001", "tier": "pro"}}
PERIOD: Final = {"start": 1, "end": 2}
SUBSCRIPTION: Final = {
    "id": "sub_1",
    "customer": "cus_1",
    "status": "active",
    "created": 1,
    "items": {"data": [{"current_period_start": 1, "current_period_end": 2, "price": {"id": "price_1", **NAMED}}]},
    **NAMED,
}
INVOICE: Final = {
    "id": "in_1",
    "customer": "cus_1",
    "created": 1,
    "currency": "usd",
    "amount_due": 1,
    "amount_paid": 1,
    "attempt_count": 1,
    "parent": {"subscription_details": {"subscription": "sub_1", **NAMED}},
    "lines": {"data": [{"period": PERIOD}]},
    "status_transitions": {"finalized_at": 1, "paid_at": 1},
}
PRICE: Final = {"id": "price_1", "currency": "usd", "recurring": {"interval": "month"}}
SAMPLE: Final = {"request": {"identifier": "hold-1"}}
REPORT: Final = {"data": {"reason": {"error_types": [{"code": "no_meter", "sample_errors": [SAMPLE]}]}}}
READS: Final[list[tuple[type[Any], Callable[[Mapping[str, Any]], object], Mapping[str, Any]]]] = [
    (stripe.Subscription, lambda facts: read_subscription(facts, past_due_since=None), SUBSCRIPTION),
    (stripe.Invoice, read_invoice, INVOICE),
    (stripe.Invoice, due_since, INVOICE),
    (stripe.Customer, read_customer, {"id": "cus_1", **NAMED}),
    (stripe.checkout.Session, read_checkout, {"id": "cs_1"}),
    (stripe.Price, read_price, PRICE),
    (V1BillingMeterErrorReportTriggeredEvent, read_usage_errors, REPORT),
]


class Watched(Mapping[str, Any]):
    """Facts that note which paths were asked for, present or not."""

    def __init__(self, facts: Mapping[str, Any], asked: set[tuple[str, ...]], path: tuple[str, ...] = ()) -> None:
        self._facts = facts
        self._asked = asked
        self._path = path

    def __getitem__(self, name: str) -> Any:
        path = (*self._path, name)
        self._asked.add(path)
        value = self._facts[name]
        if isinstance(value, list):
            return [Watched(one, self._asked, path) for one in value]  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        return Watched(value, self._asked, path) if isinstance(value, Mapping) else value  # pyright: ignore[reportUnknownArgumentType]

    def __iter__(self) -> Iterator[str]:
        return iter(self._facts)

    def __len__(self) -> int:
        return len(self._facts)


def declared(owner: type[Any], name: str) -> str:
    """The type that the SDK declares for a field."""
    for one in owner.__mro__:
        if name in vars(one).get("__annotations__", {}):
            return str(one.__annotations__[name])
    raise AssertionError(f"{owner.__name__} has no field {name}")


def class_in(owner: type[Any], declaration: str) -> type[Any] | None:
    """The class of an object, or of a list's elements."""
    for word in reversed(re.findall(r"\w+", declaration)):  # the innermost of qualified names
        found = getattr(owner, word, None) or getattr(stripe, word, None)
        if inspect.isclass(found) and issubclass(found, stripe.StripeObject) and found is not stripe.ListObject:
            return found
    return None


def require_declared(owner: type[Any], path: tuple[str, ...]) -> None:
    current: type[Any] | None = owner
    is_list = False
    for name in path:
        if is_list and name == "data":
            is_list = False
            continue
        assert current is not None, f"{owner.__name__}: nothing is declared below {'.'.join(path)}"
        declaration = declared(current, name)
        if "UntypedStripeObject" in declaration:  # keys of our own
            return
        is_list = "ListObject" in declaration
        current = class_in(current, declaration)


@pytest.mark.parametrize(("owner", "read", "facts"), READS, ids=[owner.__name__ for owner, _, _ in READS])
def test_every_field_that_is_read_is_the_pinned_version_s(
    owner: type[Any], read: Callable[[Mapping[str, Any]], object], facts: Mapping[str, Any]
) -> None:
    asked: set[tuple[str, ...]] = set()
    read(Watched(facts, asked))
    assert len(asked) > 1
    for path in sorted(asked):
        require_declared(owner, path)


@pytest.mark.parametrize(
    ("owner", "path"),
    [
        (stripe.Subscription, ("current_period_end",)),
        (stripe.Invoice, ("subscription",)),
        (stripe.Subscription, ("items", "data", "plan_id")),
        (stripe.Invoice, ("lines", "data", "price")),
    ],
)
def test_a_field_that_stripe_removed_would_be_noticed(owner: type[Any], path: tuple[str, ...]) -> None:
    with pytest.raises(AssertionError):
        require_declared(owner, path)


def test_the_version_is_the_one_these_fields_were_chosen_for() -> None:
    assert stripe.api_version == "2026-10-28.endive"
