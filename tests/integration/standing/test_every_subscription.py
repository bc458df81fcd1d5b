"""What holds for every subscription of every service, generated from their tables: a new one is covered unasked."""

from typing import Any, Final

import orjson
import pytest

from libs.common.broker.lane import ATTEMPT_HEADER, MAX_UNEXPECTED_ATTEMPTS
from libs.common.errors import Invalid
from libs.common.events import CATALOGUE
from tests.builders import an_event
from tests.harness.subscriptions import ALL, Subscribed
from tests.integration.standing.desk import Desk, body_of, changed
from tests.integration.standing.histories import HISTORIES, prepare

every_subscription: Final = pytest.mark.parametrize("one", [pytest.param(one, id=str(one)) for one in ALL])


async def an_event_to_come(desk: Desk, one: Subscribed) -> Any:
    event = an_event(one.event)
    await prepare(desk, one, event)
    return event


@every_subscription
async def test_an_event_delivered_twice_has_one_effect(desk: Desk, one: Subscribed) -> None:
    event = await an_event_to_come(desk, one)
    before = await desk.tables()
    assert await desk.deliver(one, body_of(event)) == ["done"]
    after = await desk.tables()
    effects = changed(before, after)
    assert f"{one.service}.inbox" in effects
    assert len(effects) > 1, "the example event has no effect: give it a history that lets it have one"
    assert await desk.deliver(one, body_of(event)) == ["duplicate"]
    assert changed(after, await desk.tables()) == set()


@every_subscription
async def test_of_deliveries_at_the_same_moment_one_is_handled(desk: Desk, one: Subscribed) -> None:
    event = await an_event_to_come(desk, one)
    outcomes = await desk.deliver(one, *[body_of(event)] * 3)
    assert sorted(outcomes) == ["done", "duplicate", "duplicate"]


@every_subscription
async def test_a_handler_that_breaks_commits_nothing_and_gets_the_event_again(desk: Desk, one: Subscribed) -> None:
    event = await an_event_to_come(desk, one)
    desk.breaking[event.event_id] = RuntimeError("a bug after all the work was done")
    before = await desk.tables()
    assert await desk.deliver(one, body_of(event)) == ["retried"]
    assert changed(before, await desk.tables()) == set()
    message = await desk.take_retried()
    assert message is not None
    assert (message.routing_key, message.headers[ATTEMPT_HEADER]) == (one.queue, 2)
    del desk.breaking[event.event_id]
    assert await desk.deliver(one, message.body, headers=message.headers) == ["done"]


@every_subscription
async def test_a_handler_that_goes_on_breaking_parks_the_event(desk: Desk, one: Subscribed) -> None:
    event = await an_event_to_come(desk, one)
    desk.breaking[event.event_id] = RuntimeError("a bug that stays")
    before = await desk.tables()
    assert await desk.deliver(one, body_of(event), headers={ATTEMPT_HEADER: MAX_UNEXPECTED_ATTEMPTS}) == ["parked"]
    assert changed(before, await desk.tables()) == set()
    (message,) = await desk.place.parked(one.queue)
    assert message.headers["x-parked-reason"] == "attempts_exhausted"


@every_subscription
async def test_a_handler_that_refuses_parks_the_event_with_the_reason(desk: Desk, one: Subscribed) -> None:
    event = await an_event_to_come(desk, one)
    desk.breaking[event.event_id] = Invalid("This makes no sense.")
    before = await desk.tables()
    assert await desk.deliver(one, body_of(event)) == ["parked"]
    assert changed(before, await desk.tables()) == set()
    (message,) = await desk.place.parked(one.queue)
    assert (message.headers["x-parked-reason"], message.body) == ("invalid", body_of(event, time=time_of(message.body)))


@every_subscription
async def test_fields_nobody_knows_yet_are_accepted(desk: Desk, one: Subscribed) -> None:
    event = await an_event_to_come(desk, one)
    data = {**event.model_dump(mode="json"), "a_field_of_the_future": {"deep": [1, 2]}}
    assert await desk.deliver(one, body_of(event, data=data, futureattribute="x")) == ["done"]


@every_subscription
async def test_what_cannot_be_read_is_parked_with_its_reason(desk: Desk, one: Subscribed) -> None:
    event = an_event(one.event)
    other = next(name for name in CATALOGUE if name != one.event.type)
    unreadable = [
        b"\xff{",
        b"[]",
        b'{"specversion": "1.0"}',
        body_of(event, data={}),
        body_of(event, data={**event.model_dump(mode="json"), "user_id": "nobody"}),
        body_of(event, type=other),
        body_of(event, type="nobody.knows_this.v1"),
    ]
    before = await desk.tables()
    assert await desk.deliver(one, *unreadable) == ["parked"] * len(unreadable)
    assert changed(before, await desk.tables()) == set()
    parked = await desk.place.parked(one.queue)
    assert sorted(message.body for message in parked) == sorted(unreadable)
    assert {str(message.headers["x-parked-reason"]) for message in parked} == {"events.malformed"}


def test_every_history_belongs_to_a_subscription() -> None:
    assert HISTORIES.keys() <= {one.queue for one in ALL}


def time_of(body: bytes) -> str:
    return orjson.loads(body)["time"]
