"""Streams of runs while nobody hints: what has happened is told soon, and a quiet stream asks nobody."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit
from uuid import UUID

import pytest

from libs.common import database as db
from libs.common import redis
from libs.common.http_client import Answer, HttpClient, NoAnswer
from libs.common.ids import new_id
from services.gateway.domain import Identity
from services.gateway.feed import LiveFeed
from services.gateway.runs.heads import RunHeads
from services.gateway.runs.streams import RunStreams
from services.gateway.upstreams import Upstream
from tests.harness.patience import eventually
from tests.harness.services import SERVICE_TOKEN_SECRET, Place

STREAMS = 50
READER = Identity(user_id=new_id(), session_id=None, email="", claims={})


class FakeAgents:
    """Holds the events of runs, counts who asks for them, and is away when told so."""

    def __init__(self) -> None:
        self.runs: dict[UUID, list[str]] = {}
        self.pages = 0
        self.looks = 0
        self.is_away = False

    async def request(self, _method: str, path: str, *, content: bytes | None, **_how: Any) -> Answer:
        if self.is_away:
            raise NoAnswer
        url = urlsplit(path)
        if url.path == "/internal/admin/runs/heads":
            self.looks += 1
            asked: list[str] = json.loads(content or b"")["run_ids"]
            heads = {run_id: len(self.runs[UUID(run_id)]) for run_id in asked}
            ended = [run_id for run_id in asked if self.runs[UUID(run_id)][-1] == "run.succeeded"]
            return _answered({"heads": heads, "ended": ended})
        self.pages += 1
        after = int(parse_qs(url.query)["after"][0])
        events = self.runs[UUID(url.path.split("/")[3])]
        numbered = enumerate(events[after:], start=after + 1)
        return _answered({"items": [{"seq": n, "type": it, "data": {}} for n, it in numbered], "is_terminal": False})


def _answered(body: Any) -> Answer:
    return Answer(status_code=200, raw_headers=[], content=json.dumps(body).encode())


@pytest.fixture
def fake() -> FakeAgents:
    return FakeAgents()


@pytest.fixture
async def streams(place: Place, fake: FakeAgents) -> AsyncGenerator[RunStreams, None]:
    async with AsyncExitStack() as stack:
        agents = Upstream("agents", client=cast("HttpClient", fake), secret=SERVICE_TOKEN_SECRET)
        feed = LiveFeed(await stack.enter_async_context(redis.connect(place.redis_url, name="test")))
        stack.push_async_callback(feed.close)
        url = place.database.url("venture_gateway")
        database = await stack.enter_async_context(db.connect(url, application_name="test"))
        heads = RunHeads(agents=agents, feed=feed)
        loops = [asyncio.create_task(feed.run()), asyncio.create_task(heads.run())]
        yield RunStreams(agents=agents, feed=feed, heads=heads, database=database, stopping=asyncio.Event())
        for loop in loops:
            loop.cancel()
        await asyncio.wait(loops)


async def _read(streams: RunStreams, run_id: UUID, into: list[Any]) -> None:
    async for event in streams.events(READER, run_id, after=0):
        into += [event["type"]] if event is not None else []


async def test_quiet_streams_ask_nobody_and_learn_of_an_event_without_a_hint(
    streams: RunStreams, fake: FakeAgents
) -> None:
    fake.runs = {new_id(): ["run.queued"] for _ in range(STREAMS)}
    read: dict[UUID, list[str]] = {run_id: [] for run_id in fake.runs}
    async with asyncio.TaskGroup() as group:
        for run_id, events in read.items():
            group.create_task(_read(streams, run_id, events))

        async def all_have_begun() -> bool:
            return all(events == ["run.queued"] for events in read.values())

        await eventually(all_have_begun, within_s=10)
        looked = fake.looks

        async def was_looked_three_times() -> bool:
            return fake.looks >= looked + 3

        await eventually(was_looked_three_times, within_s=15)
        assert fake.pages <= 2 * STREAMS  # once each, and once more on a machine that took ten seconds for this
        for events in fake.runs.values():
            events.append("run.succeeded")  # and every stream ends
    assert all(events == ["run.queued", "run.succeeded"] for events in read.values())
    assert fake.pages <= 3 * STREAMS


async def test_who_waits_for_an_end_is_sent_it_and_asks_nobody(
    place: Place, streams: RunStreams, fake: FakeAgents
) -> None:
    run_id = new_id()
    async with redis.connect(place.redis_url, name="publisher") as client, asyncio.TaskGroup() as group:
        waits = group.create_task(streams.end(run_id, wait_s=30))

        async def is_heard() -> bool:
            heard = client.publish(f"run-end:{run_id}", b'{"id": 1}')  # pyright: ignore[reportUnknownMemberType]
            return await heard > 0

        await eventually(is_heard, within_s=10)
    assert (waits.result(), fake.pages) == (b'{"id": 1}', 0)


async def test_an_end_without_a_hint_is_learned_of_all_the_same(streams: RunStreams, fake: FakeAgents) -> None:
    ended, running = new_id(), new_id()
    fake.runs = {ended: ["run.queued", "run.succeeded"], running: ["run.queued"]}
    waits = await asyncio.gather(streams.end(ended, wait_s=30), streams.end(running, wait_s=3))
    assert (waits, fake.pages) == ([b"", None], 0)


async def test_a_stream_outlives_that_agents_is_away(streams: RunStreams, fake: FakeAgents) -> None:
    run_id = new_id()
    fake.runs, fake.is_away = {run_id: ["run.queued"]}, True
    read: list[str] = []
    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        reader = group.create_task(_read(streams, run_id, read))
        await asyncio.wait({reader}, timeout=0.5)
        assert (read, reader.done()) == ([], False)
        fake.is_away = False
        fake.runs[run_id].append("run.succeeded")
    assert read == ["run.queued", "run.succeeded"]
