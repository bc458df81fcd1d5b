"""Parked messages on a real RabbitMQ: looking takes nothing away, a replay arrives, and nothing happens twice."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from uuid import UUID

import pytest

from libs.common.broker import ParkedMessages, Subscription, open_publisher, parked_queue, queue_name
from libs.common.broker.parked import RENEW_AT
from libs.common.database import Connection
from libs.common.errors import Invalid
from libs.common.events.gateway import UserCreated
from libs.common.ids import new_id
from libs.common.outbox import OutboxRow
from tests.harness.flow import a_consumer
from tests.harness.patience import eventually
from tests.harness.services import Place

QUEUE = queue_name("agents", UserCreated.type)


class Sink:
    """A handler that refuses until it is mended, and remembers what it took."""

    def __init__(self) -> None:
        self.is_mended = False
        self.seen: list[UUID] = []

    async def on_user_created(self, event: UserCreated, _conn: Connection) -> None:
        if not self.is_mended:
            raise Invalid("this user makes no sense")
        self.seen.append(event.user_id)


@pytest.fixture
async def sink(place: Place) -> AsyncGenerator[Sink, None]:
    sink = Sink()
    async with a_consumer(place, "agents", Subscription(event=UserCreated, handler=sink.on_user_created)):
        yield sink


@pytest.fixture
async def parked(place: Place, sink: Sink) -> AsyncGenerator[ParkedMessages, None]:
    async with open_publisher(place.amqp_url("agents"), name="agents") as publisher:
        yield ParkedMessages(place.amqp_url("agents"), publisher=publisher, name="agents")


async def send(place: Place, parked: ParkedMessages, *events: UserCreated) -> None:
    """Publish, and wait until all of them are parked."""
    async with open_publisher(place.amqp_url("gateway"), name="gateway") as publisher:
        for event in events:
            row = OutboxRow(
                id=event.event_id,
                type=event.type,
                subject=event.subject,
                data=event.model_dump(mode="json"),
                traceparent=None,
                created_at=await place.database.fetchval("SELECT now()"),
                attempts=1,
            )
            await publisher.publish_event(
                routing_key=event.type, body=row.body("gateway"), message_id=str(event.event_id), traceparent=None
            )

    async def arrived() -> bool:
        return await count(parked) == len(events)

    await eventually(arrived)


async def count(parked: ParkedMessages) -> int:
    states = await parked.states([QUEUE])
    return states[QUEUE].parked if states else 0


def events(number: int) -> Sequence[UserCreated]:
    return [UserCreated(user_id=new_id()) for _ in range(number)]


async def test_looking_shows_why_and_leaves_everything_where_it_is(place: Place, parked: ParkedMessages) -> None:
    sent = events(3)
    await send(place, parked, *sent)
    for _ in range(2):
        seen = await parked.look(QUEUE)
        assert {message.message_id for message in seen} == {str(event.event_id) for event in sent}
        assert {(message.reason, message.attempts) for message in seen} == {("invalid", 1)}
        assert all("this user makes no sense" in message.error for message in seen)

    async def all_back() -> bool:
        return await count(parked) == len(sent)

    await eventually(all_back)


async def test_a_message_survives_more_looks_than_the_broker_allows_deliveries(
    place: Place, parked: ParkedMessages
) -> None:
    (event,) = events(1)
    await send(place, parked, event)

    async def is_seen() -> bool:
        return [message.message_id for message in await parked.look(QUEUE)] == [str(event.event_id)]

    for _ in range(RENEW_AT + 3):
        await eventually(is_seen)
    (message,) = await parked.look(QUEUE)
    assert int(message.headers.get("x-delivery-count", 0)) <= RENEW_AT
    assert message.reason == "invalid"


async def test_a_replay_arrives_once_and_a_second_one_finds_nothing(
    place: Place, parked: ParkedMessages, sink: Sink
) -> None:
    wanted, other = events(2)
    await send(place, parked, wanted, other)
    sink.is_mended = True
    both = await asyncio.gather(*(parked.replay(QUEUE, message_id=str(wanted.event_id)) for _ in range(2)))
    assert sorted(both) == [0, 1]

    async def arrived() -> bool:
        return wanted.user_id in sink.seen and await count(parked) == 1

    await eventually(arrived)
    assert sink.seen == [wanted.user_id]
    assert [message.message_id for message in await parked.look(QUEUE)] == [str(other.event_id)]


async def test_what_fails_again_is_parked_again_with_a_fresh_count(place: Place, parked: ParkedMessages) -> None:
    (event,) = events(1)
    await send(place, parked, event)
    assert await parked.replay(QUEUE) == 1

    async def is_back() -> bool:
        return [(m.message_id, m.attempts) for m in await parked.look(QUEUE)] == [(str(event.event_id), 1)]

    await eventually(is_back)


async def test_what_is_discarded_is_gone_and_nothing_else_is(place: Place, parked: ParkedMessages, sink: Sink) -> None:
    doomed, kept = events(2)
    await send(place, parked, doomed, kept)
    assert await parked.discard(QUEUE, message_id=str(doomed.event_id)) == 1
    assert await parked.discard(QUEUE, message_id=str(doomed.event_id)) == 0
    sink.is_mended = True

    async def replayed() -> bool:
        return await parked.replay(QUEUE) == 1 or bool(sink.seen)

    await eventually(replayed)

    async def arrived() -> bool:
        return sink.seen == [kept.user_id]

    await eventually(arrived)


async def test_what_is_no_event_can_be_looked_at_and_discarded(place: Place, parked: ParkedMessages) -> None:
    async with open_publisher(place.amqp_url("agents"), name="agents") as publisher:
        await publisher.publish(
            exchange="agents.home", routing_key=parked_queue(QUEUE), body=b"no event", message_id=None, headers={}
        )
    (message,) = await parked.look(QUEUE)
    assert message.body == b"no event"
    assert await parked.discard(QUEUE, message_id=message.message_id) == 1


async def test_a_queue_nobody_declared_is_empty(parked: ParkedMessages) -> None:
    assert await parked.states(["agents.nothing.v1"]) == {}
    assert await parked.look("agents.nothing.v1") == []
