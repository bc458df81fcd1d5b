"""The broker's promises on a real RabbitMQ: routed or refused, handled once, retried, parked, never lost."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from libs.common import outbox
from libs.common.broker import Handler, ManyHandler, Subscription, open_publisher, queue_name
from libs.common.broker.burst import Outgoing
from libs.common.broker.lane import COMPANY, COMPANY_S, LINGER_S
from libs.common.broker.publisher import BrokerUnavailable, Unroutable
from libs.common.database import Connection, Database
from libs.common.errors import Invalid
from libs.common.events.gateway import UserCreated
from libs.common.ids import new_id
from tests.harness.flow import a_consumer, a_relay
from tests.harness.patience import eventually
from tests.harness.services import Place

QUEUE = queue_name("agents", UserCreated.type)
LOST = UUID(int=1)


@asynccontextmanager
async def consuming(
    place: Place,
    handler: Handler,
    *,
    many: ManyHandler | None = None,
    lingers: bool = False,
    lingers_in_company: bool = False,
) -> AsyncGenerator[Database, None]:
    """A gateway that relays its outbox and an agents consumer with the given handler."""
    subscription = Subscription(
        event=UserCreated, handler=handler, many=many, lingers=lingers, lingers_in_company=lingers_in_company
    )
    async with a_consumer(place, "agents", subscription), a_relay(place, "gateway") as gateway:
        yield gateway


async def publish(gateway: Database, *events: UserCreated) -> None:
    async with gateway.transaction() as conn:
        await outbox.add(conn, *events)


async def test_an_event_written_beside_a_change_reaches_its_handler_once(place: Place) -> None:
    seen: list[UUID] = []

    async def on_user_created(event: UserCreated, _conn: Connection) -> None:
        seen.append(event.user_id)

    event = UserCreated(user_id=new_id())
    async with consuming(place, on_user_created) as gateway:
        await publish(gateway, event)

        async def handled() -> bool:
            return bool(seen)

        await eventually(handled)
        assert seen == [event.user_id]
        assert await place.database.fetchval("SELECT count(*) FROM agents.inbox") == 1

        async def marked() -> bool:
            return await place.database.fetchval("SELECT count(*) FROM gateway.outbox WHERE sent_at IS NULL") == 0

        await eventually(marked)


async def test_a_message_delivered_twice_has_one_effect(place: Place) -> None:
    seen: list[UUID] = []

    async def on_user_created(event: UserCreated, _conn: Connection) -> None:
        seen.append(event.user_id)

    event = UserCreated(user_id=new_id())
    marker = UserCreated(user_id=new_id())
    async with consuming(place, on_user_created) as gateway:
        await publish(gateway, event)

        async def sent() -> bool:
            return bool(await place.database.fetchval("SELECT sent_at FROM gateway.outbox"))

        await eventually(sent)
        await place.database.execute("UPDATE gateway.outbox SET sent_at = NULL, claimed_until = '-infinity'")
        await eventually(sent)
        await publish(gateway, marker)

        async def marker_handled() -> bool:
            return marker.user_id in seen

        await eventually(marker_handled)
        assert seen.count(event.user_id) == 1


async def test_a_handler_that_refuses_parks_the_message_with_its_reason(place: Place) -> None:
    async def on_user_created(_event: UserCreated, _conn: Connection) -> None:
        raise Invalid("this user makes no sense")

    async with consuming(place, on_user_created) as gateway:
        await publish(gateway, UserCreated(user_id=new_id()))

        async def arrived() -> list[AbstractIncomingMessage]:
            return await place.parked(QUEUE)

        (message,) = await eventually(arrived)
        assert message.headers["x-parked-reason"] == "invalid"
        assert "this user makes no sense" in str(message.headers["x-parked-error"])
        assert await place.database.fetchval("SELECT count(*) FROM agents.inbox") == 0


async def test_a_body_that_is_no_event_is_parked_and_the_next_one_is_handled(place: Place) -> None:
    seen: list[UUID] = []

    async def on_user_created(event: UserCreated, _conn: Connection) -> None:
        seen.append(event.user_id)

    async with consuming(place, on_user_created) as gateway:
        async with open_publisher(place.amqp_url("operator"), name="intruder") as intruder:
            await intruder.publish(
                exchange="events", routing_key=UserCreated.type, body=b"\xff{", message_id="x", headers={}
            )
        event = UserCreated(user_id=new_id())
        await publish(gateway, event)

        async def handled() -> bool:
            return event.user_id in seen

        await eventually(handled)

        async def arrived() -> list[AbstractIncomingMessage]:
            return await place.parked(QUEUE)

        (message,) = await eventually(arrived)
        assert message.headers["x-parked-reason"] == "events.malformed"


async def test_a_handler_that_breaks_commits_nothing_and_is_tried_again(place: Place) -> None:
    attempts: list[UUID] = []

    async def on_user_created(event: UserCreated, conn: Connection) -> None:
        attempts.append(event.user_id)
        await conn.execute("INSERT INTO inbox (event_id, type) VALUES (gen_random_uuid(), 'half-done')")
        if len(attempts) == 1:
            raise RuntimeError("a bug that shows once")

    async with consuming(place, on_user_created) as gateway:
        await publish(gateway, UserCreated(user_id=new_id()))

        async def handled_again() -> bool:
            return len(attempts) == 2 and await place.database.fetchval("SELECT count(*) FROM agents.inbox") == 2

        await eventually(handled_again, within_s=15)


async def test_an_unroutable_message_is_refused_although_the_broker_confirms_it(place: Place) -> None:
    async with open_publisher(place.amqp_url("gateway"), name="gateway") as publisher:
        with pytest.raises(Unroutable):
            await publisher.publish_event(
                routing_key="gateway.nobody_listens.v1", body=b"{}", message_id="1", traceparent=None
            )


async def test_of_many_sent_at_once_each_gets_the_broker_s_own_word(place: Place) -> None:
    seen: list[UUID] = []

    async def on_user_created(event: UserCreated, _conn: Connection) -> None:
        seen.append(event.user_id)

    async with consuming(place, on_user_created) as gateway:
        sent = [UserCreated(user_id=new_id()) for _ in range(300)]
        async with gateway.transaction() as conn:
            await outbox.add(conn, *sent[:150])
            await conn.execute(
                "INSERT INTO outbox (id, type, data) VALUES ($1, 'gateway.nobody_listens.v1', '{}')", LOST
            )
            await conn.execute("INSERT INTO outbox (id, type, data) VALUES ($1, repeat('x', 300), '{}')", new_id())
            await outbox.add(conn, *sent[150:])

        async def all_came() -> bool:
            return len(seen) >= len(sent)

        async def all_marked() -> bool:
            return await place.database.fetchval("SELECT count(*) FROM gateway.outbox WHERE sent_at IS NULL") == 2

        await eventually(all_came, within_s=15)
        await eventually(all_marked, within_s=15)
        assert sorted(seen) == sorted(event.user_id for event in sent)
        errors = await place.database.fetch("SELECT last_error FROM gateway.outbox WHERE sent_at IS NULL ORDER BY type")
        assert [row["last_error"].partition(":")[0] for row in errors] == ["Unroutable", "ValueError"]


async def test_what_ends_the_channel_is_told_to_all_that_were_under_way_and_the_next_has_a_new_one(
    place: Place,
) -> None:
    async with open_publisher(place.amqp_url("gateway"), name="gateway") as publisher:
        nowhere = Outgoing(exchange="nobody-declared-this", routing_key="x", body=b"{}", message_id=None)
        unheard = Outgoing(exchange="events", routing_key="gateway.nobody_listens.v1", body=b"{}", message_id="1")
        errors = await publisher.publish_all([nowhere, unheard])
        assert [type(error) for error in errors] == [BrokerUnavailable] * 2
        with pytest.raises(Unroutable):
            await publisher.publish_event(routing_key=unheard.routing_key, body=b"{}", message_id="1", traceparent=None)


async def test_a_consumer_whose_queue_was_deleted_declares_it_again(place: Place) -> None:
    seen: list[UUID] = []

    async def on_user_created(event: UserCreated, _conn: Connection) -> None:
        seen.append(event.user_id)

    async with consuming(place, on_user_created) as gateway:
        connection = await aio_pika.connect(place.amqp_url("operator"))
        async with connection, connection.channel() as channel:
            await channel.queue_delete(QUEUE)
        event = UserCreated(user_id=new_id())
        await publish(gateway, event)

        async def handled() -> bool:
            return event.user_id in seen

        await eventually(handled, within_s=20)


@pytest.mark.parametrize("handled", ["each", "many"])
async def test_what_waits_is_committed_together_and_what_breaks_in_it_is_settled_alone(
    place: Place, handled: str
) -> None:
    opened = asyncio.Event()
    sizes: list[int] = []
    good, again = [UserCreated(user_id=new_id()) for _ in range(12)], UserCreated(user_id=new_id())
    refused, broken = UserCreated(user_id=new_id()), UserCreated(user_id=new_id())

    async def on_user_created(event: UserCreated, conn: Connection) -> None:
        await conn.execute("INSERT INTO inbox (event_id, type) VALUES (gen_random_uuid(), $1)", str(event.user_id))
        await opened.wait()
        if event.user_id == refused.user_id:
            raise Invalid("this user makes no sense")
        if event.user_id == broken.user_id:
            raise RuntimeError("a bug after all the work was done")

    async def on_many(events: Sequence[UserCreated], conn: Connection) -> None:
        sizes.append(len(events))
        for event in events:
            await on_user_created(event, conn)

    async def effects() -> dict[str, int]:
        rows = await place.database.fetch(
            "SELECT type, count(*) AS n FROM agents.inbox WHERE type LIKE '%-%' GROUP BY 1"
        )
        return {row["type"]: row["n"] for row in rows}

    async with consuming(place, on_user_created, many=on_many if handled == "many" else None) as gateway:
        await publish(gateway, UserCreated(user_id=new_id()))  # it holds the lane until the others are all there
        await publish(gateway, *good[:6], refused, again, broken, *good[6:])
        await eventually(lambda: _all_sent(place))
        await place.database.execute(
            "UPDATE gateway.outbox SET sent_at = NULL, claimed_until = '-infinity' WHERE id = $1", again.event_id
        )
        await eventually(lambda: _all_sent(place))
        opened.set()

        async def settled() -> bool:
            return len(await effects()) == len(good) + 2 and bool(await place.parked(QUEUE))

        await eventually(settled)
        assert {str(event.user_id): 1 for event in (*good, again)}.items() <= (await effects()).items()
        assert {str(refused.user_id), str(broken.user_id)}.isdisjoint(await effects())
        commits = await place.database.fetchval("SELECT count(DISTINCT xmin::text) FROM agents.inbox")
        # What came together committed together; a batch that broke as one, each for itself.
        assert max(sizes) > 1 if handled == "many" else commits < len(good)


async def test_a_lane_that_lingers_waits_for_company_and_leaves_none_behind(place: Place) -> None:
    begun: list[float] = []

    async def on_many(events: Sequence[UserCreated], _conn: Connection) -> None:
        begun.extend(time.monotonic() for _ in events)

    async def on_user_created(event: UserCreated, conn: Connection) -> None:
        await on_many([event], conn)

    async def has_begun() -> bool:
        return bool(begun)

    async with consuming(place, on_user_created, many=on_many, lingers=True) as gateway:
        published = time.monotonic()
        await publish(gateway, UserCreated(user_id=new_id()))
        await eventually(has_begun)
        assert begun[0] - published >= LINGER_S
        await publish(gateway, *(UserCreated(user_id=new_id()) for _ in range(20)))
        await eventually(lambda: _all_sent(place))

    async def all_are_handled() -> bool:
        return len(begun) >= 21

    async with consuming(place, on_user_created, many=on_many, lingers=True):
        await eventually(all_are_handled)
    assert len(begun) == 21, "what one that is stopped while it lingers has not handled, the next one does"


async def test_what_follows_a_crowd_waits_a_moment_for_the_rest_of_it(place: Place) -> None:
    batches: list[tuple[float, int]] = []

    async def on_many(events: Sequence[UserCreated], _conn: Connection) -> None:
        batches.append((time.monotonic(), len(events)))

    async def on_user_created(event: UserCreated, conn: Connection) -> None:
        await on_many([event], conn)

    async def handled(gateway: Database, count: int) -> None:
        wanted = sum(size for _, size in batches) + count
        await publish(gateway, *(UserCreated(user_id=new_id()) for _ in range(count)))

        async def all_are() -> bool:
            return sum(size for _, size in batches) >= wanted

        await eventually(all_are)

    async with consuming(place, on_user_created, many=on_many, lingers_in_company=True) as gateway:
        while not batches or batches[-1][1] < COMPANY:  # a crowd may come in several parts
            await handled(gateway, 5 * COMPANY)
        published = time.monotonic()
        await handled(gateway, 1)
    assert batches[-1][0] - published >= COMPANY_S


async def _all_sent(place: Place) -> bool:
    return await place.database.fetchval("SELECT count(*) FROM gateway.outbox WHERE sent_at IS NULL") == 0
