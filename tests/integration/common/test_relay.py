"""The relay beside a publisher that says what the test wants: what it claims ahead, and what it survives."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from libs.common import database as db
from libs.common import outbox
from libs.common.database import Database
from libs.common.events import EncodedEvent
from libs.common.events.gateway import UserCreated
from libs.common.ids import new_id
from tests.harness.patience import eventually
from tests.harness.services import Place
from tests.harness.tasks import running


class FakePublisher:
    """Takes everything, once `before` has been awaited."""

    def __init__(self, before: Callable[[], Awaitable[object]]) -> None:
        self.bursts: list[list[str]] = []
        self._before = before

    async def publish_events(self, events: Sequence[EncodedEvent]) -> Sequence[Exception | None]:
        self.bursts.append([event.id for event in events])
        await self._before()
        return [None] * len(events)


async def add(gateway: Database, count: int) -> list[str]:
    events = [UserCreated(user_id=new_id()) for _ in range(count)]
    async with gateway.transaction() as conn:
        await outbox.add(conn, *events)
    return sorted(str(event.event_id) for event in events)


async def unsent(place: Place) -> int:
    return await place.database.fetchval("SELECT count(*) FROM gateway.outbox WHERE sent_at IS NULL")


async def test_of_a_backlog_one_batch_is_claimed_ahead_of_the_confirms_and_marked_only_after_its_own(
    place: Place,
) -> None:
    confirmed = asyncio.Event()
    publisher = FakePublisher(confirmed.wait)
    async with db.connect(place.database.url("venture_gateway"), application_name="relay") as gateway:
        ids = await add(gateway, 2 * outbox.BATCH_SIZE + 10)
        async with running(outbox.Relay(gateway, publisher, source="gateway").run):

            async def two_under_way() -> bool:
                return len(publisher.bursts) == outbox.AHEAD + 1

            await eventually(two_under_way)
            assert await unsent(place) == len(ids)
            claimed = await place.database.fetchval("SELECT count(*) FROM gateway.outbox WHERE attempts > 0")
            assert claimed == (outbox.AHEAD + 1) * outbox.BATCH_SIZE
            confirmed.set()

            async def all_marked() -> bool:
                return await unsent(place) == 0

            await eventually(all_marked)
    assert [name for burst in publisher.bursts for name in burst] == ids


async def test_a_relay_whose_mark_was_lost_sends_again_and_goes_on(place: Place) -> None:
    is_first = True

    async def break_connections_once() -> None:
        nonlocal is_first
        if is_first:
            is_first = False
            await place.database.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'broken-relay'"
            )

    publisher = FakePublisher(break_connections_once)
    async with db.connect(place.database.url("venture_gateway"), application_name="broken-relay") as gateway:
        (lost,) = await add(gateway, 1)
        async with running(outbox.Relay(gateway, publisher, source="gateway").run):

            async def is_published() -> bool:
                return publisher.bursts == [[lost]]

            await eventually(is_published)

            async def next_is_added() -> list[str]:
                try:
                    return await add(gateway, 1)
                except db.DatabaseUnavailable:
                    return []

            (after,) = await eventually(next_is_added)

            async def only_the_first_is_left() -> bool:
                left = await place.database.fetch("SELECT id::text FROM gateway.outbox WHERE sent_at IS NULL")
                return [row["id"] for row in left] == [lost]

            await eventually(only_the_first_is_left)
            assert [after] in publisher.bursts
            await place.database.execute("UPDATE gateway.outbox SET claimed_until = '-infinity'")

            async def none_is_left() -> bool:
                return await unsent(place) == 0

            await eventually(none_is_left)
    assert publisher.bursts.count([lost]) == 2
