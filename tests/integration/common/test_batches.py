"""Events that share a message on a real RabbitMQ: fewer messages, and still each event for itself."""

from collections.abc import Sequence
from uuid import UUID

import aio_pika
import orjson
import pytest
from aio_pika.abc import AbstractIncomingMessage
from prometheus_client import REGISTRY

from libs.common.broker import Subscription, open_publisher, queue_name
from libs.common.broker.message import BREAK_UP_AT, MOST_EVENTS
from libs.common.broker.publisher import Unroutable
from libs.common.database import Connection
from libs.common.errors import Invalid
from libs.common.events import EncodedEvent
from libs.common.events.gateway import UserCreated
from libs.common.ids import new_id
from tests.harness.flow import a_consumer
from tests.harness.patience import eventually
from tests.harness.services import Place

QUEUE = queue_name("agents", UserCreated.type)


class Handler:
    """Remembers whom it was told of, and refuses some."""

    def __init__(self, *, refuses: Sequence[UUID] = ()) -> None:
        self.seen: list[UUID] = []
        self._refuses = set(refuses)

    async def handle(self, event: UserCreated, _conn: Connection) -> None:
        if event.user_id in self._refuses:
            raise Invalid("this user makes no sense")
        self.seen.append(event.user_id)

    @property
    def subscription(self) -> Subscription:
        return Subscription(event=UserCreated, handler=self.handle)


def encoded(user_id: UUID, *, event_type: str = UserCreated.type) -> EncodedEvent:
    event_id = str(new_id())
    envelope = {
        "id": event_id,
        "type": event_type,
        "source": "gateway",
        "time": "2026-01-01T00:00:00.000Z",
        "data": {"user_id": str(user_id)},
    }
    return EncodedEvent(event_id, event_type, orjson.dumps(envelope), None)


async def send(place: Place, events: Sequence[EncodedEvent]) -> None:
    async with open_publisher(place.amqp_url("gateway"), name="gateway") as publisher:
        assert set(await publisher.publish_events(events)) == {None}


async def leave_a_queue(place: Place) -> None:
    """With nobody there to take what comes."""
    async with a_consumer(place, "agents", Handler().subscription):
        pass


async def take_and_return(place: Place, *, times: int) -> list[AbstractIncomingMessage]:
    """What waits, each message as often as a reader that dies of it would have taken it."""
    connection = await aio_pika.connect(place.amqp_url("operator"))
    async with connection, connection.channel() as channel:
        queue = await channel.declare_queue(QUEUE, passive=True)
        taken: list[AbstractIncomingMessage] = []
        for _ in range(times):
            taken = []
            while (message := await queue.get(fail=False)) is not None:
                taken.append(message)
            for message in taken:
                await message.nack(requeue=True)
    return taken


async def inbox_size(place: Place) -> int:
    return await place.database.fetchval("SELECT count(*) FROM agents.inbox")


async def waiting(place: Place) -> int:
    connection = await aio_pika.connect(place.amqp_url("operator"))
    async with connection, connection.channel() as channel:
        return (await channel.declare_queue(QUEUE, passive=True)).declaration_result.message_count or 0


def sent_alone() -> float:
    labels = {"queue": QUEUE, "outcome": "sent_alone"}
    return REGISTRY.get_sample_value("messages_handled_duration_seconds_count", labels) or 0


async def test_a_burst_travels_in_few_messages_and_each_event_is_handled_once(place: Place) -> None:
    users = [new_id() for _ in range(MOST_EVENTS + 8)]
    await leave_a_queue(place)
    await send(place, [encoded(user_id) for user_id in users])
    messages = await take_and_return(place, times=1)
    assert [len(orjson.loads(message.body)) for message in messages] == [MOST_EVENTS, 8]
    assert {message.content_type for message in messages} == {"application/cloudevents-batch+json"}
    handler = Handler()
    async with a_consumer(place, "agents", handler.subscription):

        async def all_are_handled() -> bool:
            return await inbox_size(place) == len(users)

        await eventually(all_are_handled)
    assert sorted(handler.seen) == sorted(users)
    assert await waiting(place) == 0, "what is settled is acked"


async def test_of_a_message_only_what_is_wrong_is_parked_each_by_itself(place: Place) -> None:
    good, refused = [new_id() for _ in range(5)], new_id()
    malformed = EncodedEvent("broken", UserCreated.type, b'{"id": "broken", "data": 5}', None)
    events = [*(encoded(user_id) for user_id in good[:2]), malformed, encoded(refused)]
    handler = Handler(refuses=[refused])
    async with a_consumer(place, "agents", handler.subscription):
        await send(place, [*events, *(encoded(user_id) for user_id in good[2:])])
        parked: list[AbstractIncomingMessage] = []

        async def both_are_parked() -> bool:
            parked.extend(await place.parked(QUEUE))
            return len(parked) == 2 and await inbox_size(place) == len(good)

        await eventually(both_are_parked)
    assert set(handler.seen) == set(good)
    told = {str(message.headers["x-parked-reason"]): message for message in parked}
    assert told["events.malformed"].message_id == "broken"
    assert orjson.loads(told["events.malformed"].body) == orjson.loads(malformed.body)
    assert orjson.loads(told["invalid"].body)["data"] == {"user_id": str(refused)}
    assert await waiting(place) == 0


async def test_what_may_be_deadly_to_its_reader_goes_on_alone(place: Place) -> None:
    users = [new_id() for _ in range(4)]
    await leave_a_queue(place)
    events = [encoded(user_id) for user_id in users]
    await send(place, events)
    await take_and_return(place, times=BREAK_UP_AT)
    handler = Handler()
    before = sent_alone()
    async with a_consumer(place, "agents", handler.subscription):

        async def all_are_handled() -> bool:
            return await inbox_size(place) == len(users)

        await eventually(all_are_handled)
    assert sent_alone() - before == len(events)
    assert sorted(handler.seen) == sorted(users)
    assert await waiting(place) == 0


async def test_all_events_of_a_message_share_the_broker_s_word_on_it(place: Place) -> None:
    unheard = [encoded(new_id(), event_type="gateway.nobody_listens.v1") for _ in range(3)]
    handler = Handler()
    async with (
        a_consumer(place, "agents", handler.subscription),
        open_publisher(place.amqp_url("gateway"), name="gateway") as publisher,
    ):
        heard = [encoded(new_id()) for _ in range(2)]
        words = await publisher.publish_events([unheard[0], heard[0], unheard[1], heard[1], unheard[2]])
    assert [type(word) for word in words] == [Unroutable, type(None), Unroutable, type(None), Unroutable]


@pytest.mark.parametrize("most", [1, 3])
async def test_how_many_share_a_message_can_be_set(place: Place, most: int) -> None:
    await leave_a_queue(place)
    async with open_publisher(place.amqp_url("gateway"), name="gateway", events_per_message=most) as publisher:
        assert set(await publisher.publish_events([encoded(new_id()) for _ in range(6)])) == {None}
    assert await waiting(place) == 6 // most
