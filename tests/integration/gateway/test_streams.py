"""Event streams: how many one user may have, what a reader costs that stops reading, and how they end."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from uuid import UUID

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from libs.common.process import Service, serving
from services.gateway import sse
from services.gateway.settings import Settings
from services.gateway.sse import StreamSlots
from services.gateway.wiring import build
from tests.harness.gateway import gateway_settings
from tests.harness.patience import eventually
from tests.harness.services import Place, run_service
from tests.integration.gateway.conftest import SignedIn

CAP = 3
FRAME = sse.frame(event="run.delta", data={"text": "x" * 32_768}, event_id="1")


@pytest.fixture
def settings(place: Place) -> Settings:
    return gateway_settings(place, streams_per_user=CAP)


async def _opened(stack: AsyncExitStack, client: httpx.AsyncClient) -> httpx.Response:
    return await stack.enter_async_context(client.stream("GET", "/v1/events"))


async def test_a_user_has_so_many_streams_and_gets_a_slot_back_when_one_is_closed(user: SignedIn) -> None:
    async with AsyncExitStack() as others:
        async with AsyncExitStack() as one:
            assert (await _opened(one, user.client)).status_code == 200
            for _ in range(CAP - 1):
                assert (await _opened(others, user.client)).status_code == 200
            refused = await user.client.get("/v1/events")
            assert (refused.status_code, refused.json()["code"]) == (429, "gateway.too_many_streams")
            assert int(refused.headers["retry-after"]) >= 1

        async def is_free_again() -> bool:
            async with user.client.stream("GET", "/v1/events") as response:
                return response.status_code == 200

        await eventually(is_free_again, within_s=5)


class Endless:
    """An application whose one stream never runs dry, and which counts what was taken of it."""

    def __init__(self) -> None:
        self.taken = 0
        self.has_ended = asyncio.Event()
        self._slots = StreamSlots(per_user=1, in_all=1)

    async def frames(self) -> AsyncGenerator[bytes, None]:
        try:
            while True:
                self.taken += 1
                yield FRAME
                await asyncio.wait({asyncio.create_task(_nothing())})  # real streams wait for a database or a hint
        finally:
            self.has_ended.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})
        await self._slots.stream(UUID(int=1), self.frames())(scope, receive, send)
        await sse.run_detached(scope, receive, send)


async def _nothing() -> None:
    return


async def test_a_reader_that_stops_reading_costs_what_fits_into_the_sockets_and_no_more() -> None:
    app = Endless()
    async with serving(Service(name="endless", app=app, health_app=app), host="127.0.0.1", port=0) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port, limit=1024)
        writer.write(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        seen = -1

        async def has_stopped() -> bool:
            nonlocal seen
            before, seen = seen, app.taken
            return before == seen

        await eventually(has_stopped, within_s=20, every_s=0.3)
        assert app.taken * len(FRAME) < 32 * 1024 * 1024
        writer.transport.abort()
        await asyncio.wait_for(app.has_ended.wait(), timeout=5)


async def test_streams_end_at_once_when_their_process_stops_and_go_on_elsewhere(
    user: SignedIn, settings: Settings, place: Place
) -> None:
    headers = {"Authorization": user.client.headers["Authorization"]}
    async with AsyncExitStack() as stack:
        leaving = await stack.enter_async_context(AsyncExitStack())
        replica = await leaving.enter_async_context(run_service(build(settings)))
        stream = await stack.enter_async_context(
            httpx.AsyncClient(base_url=replica.base_url, headers=headers, timeout=20)
        )
        response = await stack.enter_async_context(stream.stream("GET", "/v1/events"))
        lines = response.aiter_lines()
        assert await anext(lines) == ": still here"
        started = time.monotonic()
        ending = asyncio.create_task(leaving.aclose())
        rest = [line async for line in lines]  # ends properly: no connection is cut
        await ending
        assert time.monotonic() - started < 5
        assert not any(line.startswith("data:") for line in rest)
    await place.database.execute("UPDATE public.user_profiles SET subscription_tier = 'pro'")
    async with user.client.stream("GET", "/v1/events", headers={"Last-Event-ID": "0"}) as again:
        async for line in again.aiter_lines():
            if line == "event: entitlements.changed":
                return
