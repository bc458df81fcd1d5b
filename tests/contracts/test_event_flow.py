"""Who sends what to whom: every event has a sender, its owner, and a consumer; queues are named after both."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from libs.common.broker import parked_queue, queue_name
from libs.common.events import CATALOGUE, Event, agents, billing, gateway, metering
from libs.common.outbox import add_of_rows
from tests.harness.subscriptions import ALL, Subscribed, tables

ROOT: Final = Path(__file__).parents[2]
OWNERS: Final = {"agents": agents, "billing": billing, "gateway": gateway, "metering": metering}
EVENTS: Final = [pytest.param(event, id=name) for name, event in CATALOGUE.items()]
SUBSCRIBED: Final = [pytest.param(one, id=str(one)) for one in ALL]


def declared() -> list[type[Event]]:
    """Every event class the owners' files declare."""
    return [
        thing
        for module in OWNERS.values()
        for thing in vars(module).values()
        if isinstance(thing, type) and issubclass(thing, Event) and thing is not Event
    ]


def made_by(service: str) -> Iterator[str]:
    """Names of the event classes a service's code makes or has its SQL make, and types its migrations write."""
    for path in (ROOT / "services" / service).rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        imported = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("libs.common.events")
            for alias in node.names
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            if isinstance(node.func, ast.Name) and node.func.id in imported:
                yield node.func.id
            if isinstance(node.func, ast.Attribute) and node.func.attr == add_of_rows.__name__:
                yield from (arg.id for arg in node.args if isinstance(arg, ast.Name) and arg.id in imported)
    for path in (ROOT / "migrations").glob(f"*_{service}*.sql"):
        yield from re.findall(rf"'({service}\.\w+\.v\d+)'", path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def makers() -> dict[str, set[str]]:
    return {service: set(made_by(service)) for service in OWNERS}


def test_the_catalogue_lists_every_declared_event() -> None:
    assert set(declared()) == set(CATALOGUE.values())


@pytest.mark.parametrize("event", EVENTS)
def test_a_type_is_owner_fact_and_version(event: type[Event]) -> None:
    assert re.fullmatch(r"(gateway|billing|metering|agents)\.[a-z]+(_[a-z]+)*\.v[1-9]\d*", event.type)
    assert getattr(OWNERS[event.owner()], event.__name__) is event


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_is_sent_by_its_owner_and_nobody_else(event: type[Event], makers: dict[str, set[str]]) -> None:
    senders = {service for service, made in makers.items() if made & {event.__name__, event.type}}
    assert senders == {event.owner()}


@pytest.mark.parametrize("event", EVENTS)
def test_an_event_has_a_consumer(event: type[Event]) -> None:
    """One that no queue takes cannot be sent: it would stay in the outbox for ever."""
    assert [one for one in ALL if one.event is event]


@pytest.mark.parametrize("one", SUBSCRIBED)
def test_a_subscription_is_to_an_event_of_the_catalogue(one: Subscribed) -> None:
    assert CATALOGUE[one.event.type] is one.event


@pytest.mark.parametrize("service", OWNERS)
def test_a_service_subscribes_to_an_event_once(service: str) -> None:
    events = [subscription.event.type for subscription in tables()[service]]
    assert len(events) == len(set(events))


def test_queues_are_named_after_consumer_and_event() -> None:
    assert queue_name("metering", agents.RunFinished.type) == "metering.agents.run_finished.v1"
    assert parked_queue("metering.agents.run_finished.v1") == "metering.agents.run_finished.v1.parked"
