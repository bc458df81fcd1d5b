"""What the broker lets a service do: speak for itself, listen to all, and nothing in another's name."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import ChannelPreconditionFailed, ProbableAuthenticationError
from aiormq.exceptions import ChannelAccessRefused

from libs.common.broker import RETRY_DELAYS_S, home_exchange, parked_queue, queue_name, retry_exchange
from libs.common.events.agents import RunFinished
from libs.common.events.billing import SubscriptionChanged
from libs.common.ids import new_id
from tests.harness.house import House
from tests.harness.patience import eventually

VICTIM = queue_name("metering", RunFinished.type)
FORGER = "billing"


@asynccontextmanager
async def channel_of(house: House, user: str) -> AsyncGenerator[AbstractChannel, None]:
    """With confirms: a refusal arrives instead of a silence."""
    connection = await aio_pika.connect(house.place.amqp_url(user))
    async with connection:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)


def forged() -> aio_pika.Message:
    return aio_pika.Message(b"{}", message_id=str(new_id()))


@pytest.mark.parametrize(
    ("exchange", "routing_key"),
    [
        ("events", RunFinished.type),
        ("events", "gateway.user_deleted.v1"),
        ("events", f"x.{SubscriptionChanged.type}"),
        ("events", ""),
        ("", VICTIM),
        ("", parked_queue(VICTIM)),
        *((retry_exchange("metering", delay_s), VICTIM) for delay_s in RETRY_DELAYS_S),
        (home_exchange("metering"), VICTIM),
        ("amq.topic", RunFinished.type),
        ("amq.direct", VICTIM),
    ],
)
async def test_a_service_cannot_send_in_anothers_name_or_to_anothers_queue(
    house: House, exchange: str, routing_key: str
) -> None:
    async with channel_of(house, FORGER) as channel:
        target = await channel.get_exchange(exchange, ensure=False) if exchange else channel.default_exchange
        with pytest.raises(ChannelAccessRefused):
            await target.publish(forged(), routing_key=routing_key)


async def test_not_even_its_own_way_back_leads_to_anothers_queue(house: House) -> None:
    """What a service sends up its own retry ladder comes down in its own house, whatever the routing key says."""
    own = queue_name(FORGER, "gateway.user_deleted.v1")
    rung = retry_exchange(FORGER, RETRY_DELAYS_S[0])
    async with channel_of(house, FORGER) as channel:
        ladder = await channel.get_exchange(rung, ensure=False)
        for routing_key in (VICTIM, own):
            await ladder.publish(aio_pika.Message(b"{}", expiration=0.05), routing_key=routing_key)

        async def second_came_down() -> bool:
            return bool(await house.place.parked(own))

        await eventually(second_came_down)
        assert not await house.place.parked(VICTIM)
        await channel.queue_delete(rung)  # the first waits there for a queue of its name, for ever


async def test_a_service_sends_its_own_events(house: House) -> None:
    async with channel_of(house, FORGER) as channel:
        exchange = await channel.get_exchange("events", ensure=False)
        # The broker takes it; that it is no event is its reader's to find, who parks it.
        await exchange.publish(forged(), routing_key=SubscriptionChanged.type)
    queue = queue_name("gateway", SubscriptionChanged.type)

    async def arrived() -> bool:
        return bool(await house.place.parked(queue))

    await eventually(arrived)


@pytest.mark.parametrize("queue", [VICTIM, parked_queue(VICTIM), retry_exchange("metering", RETRY_DELAYS_S[0])])
async def test_a_service_cannot_read_empty_or_delete_what_is_anothers(house: House, queue: str) -> None:
    async def consume(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).get(fail=False)

    async def purge(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).purge()

    async def delete(channel: AbstractChannel) -> None:
        await channel.queue_delete(queue)

    async def bind(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).bind("events", routing_key="billing.#")

    for act in (consume, purge, delete, bind):
        async with channel_of(house, FORGER) as channel:
            with pytest.raises(ChannelAccessRefused):
                await act(channel)


async def test_a_service_can_neither_delete_nor_redefine_the_shared_exchange(house: House) -> None:
    async with channel_of(house, FORGER) as channel:
        with pytest.raises((ChannelAccessRefused, ChannelPreconditionFailed)):
            await channel.exchange_delete("events")


@pytest.mark.parametrize("login", ["guest:guest", "operator:operator", "billing:guest"])
async def test_nobody_enters_with_a_password_that_everybody_knows(house: House, login: str) -> None:
    address = house.place.amqp_url("gateway").rpartition("@")[2]
    with pytest.raises(ProbableAuthenticationError):
        await aio_pika.connect(f"amqp://{login}@{address}", timeout=5)
