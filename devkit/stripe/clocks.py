"""Test clocks, and the work that any clock brings when it moves."""

import asyncio
from typing import cast

from devkit.stripe import checkout, lifecycle
from devkit.stripe.errors import ApiError, Json
from devkit.stripe.rendering import LIST_PARAMS, page
from devkit.stripe.world import DAY_S, Call, Route, World, copied

KIND = "test_helpers.test_clock"
STEPS_AT_ONCE = 20


def create_clock(world: World, call: Call) -> Json:
    params = call.params
    params.only(("frozen_time", "name"))
    params.need("frozen_time")
    body: Json = {
        "id": world.new_id("clock"),
        "object": KIND,
        "created": world.now(),
        "deletes_after": world.now() + 30 * DAY_S,
        "frozen_time": params.number("frozen_time"),
        "livemode": False,
        "name": params.text("name"),
        "status": "ready",
        "status_details": {},
    }
    return world.add(body, "test_helpers.test_clock.created")


def advance_clock(world: World, call: Call) -> Json:
    """The answer says `advancing`; the clock is `ready` once all that was due has happened."""
    params = call.params
    params.only(("frozen_time",))
    params.need("frozen_time")
    before = world.need(KIND, call.ids[0], noun="test clock")
    target = params.number("frozen_time") or 0
    if before["status"] != "ready":
        raise ApiError(429, "invalid_request_error", "The test clock is still advancing.", code="test_clock_advancing")
    if target <= before["frozen_time"]:
        raise ApiError.invalid("frozen_time must be later than the clock's current time.", param="frozen_time")
    after: Json = copied(before) | {
        "status": "advancing",
        "status_details": {"advancing": {"target_frozen_time": target}},
    }
    return world.change(before, after, "test_helpers.test_clock.advancing")


def retrieve_clock(world: World, call: Call) -> Json:
    return world.need(KIND, call.ids[0], noun="test clock")


def list_clocks(world: World, call: Call) -> Json:
    call.params.only(LIST_PARAMS)
    return page(world, call, KIND)


def delete_clock(world: World, call: Call) -> Json:
    """The clock goes, and everything that lives on it."""
    body = world.need(KIND, call.ids[0], noun="test clock")
    for customer in [one for one in world.store.newest_first("customer") if one["test_clock"] == body["id"]]:
        for subscription in list(world.store.newest_first("subscription", owner=customer["id"])):
            if subscription["status"] not in lifecycle.ENDED:
                lifecycle.end(world, subscription, reason=None)
        world.store.mark_deleted(customer["id"], {"id": customer["id"], "object": "customer", "deleted": True})
    stub: Json = {"id": body["id"], "object": KIND, "deleted": True}
    world.store.mark_deleted(body["id"], stub)
    world.emit("test_helpers.test_clock.deleted", body)
    return stub


def step(world: World, clock: str, until: int) -> bool:
    """Do the earliest work due on a clock up to `until`, in one transaction; False when there is none."""
    with world.store.transaction():
        due = world.store.next_due(clock, until)
        if due is None:
            return False
        name, moment = due
        body = world.store.find(name) or {}
        if clock:
            _show(world, clock, moment)
        with world.standing_at(clock, moment):
            match body["object"]:
                case "subscription":
                    lifecycle.on_due(world, body)
                case "invoice":
                    lifecycle.on_invoice_due(world, body)
                case _:
                    checkout.expire(world, body)
    world.committed()
    return True


def _show(world: World, clock: str, moment: int) -> None:
    body = world.need(KIND, clock)
    world.store.put(copied(body) | {"frozen_time": max(moment, cast("int", body["frozen_time"]))})


async def catch_up(world: World, clock: str, until: int) -> None:
    """Do all that is due on a clock, pausing now and then so that calls are still answered."""
    steps = 0
    while step(world, clock, until):
        steps += 1
        if steps % STEPS_AT_ONCE == 0:
            await asyncio.sleep(0)


async def move_global(world: World, target: int) -> None:
    """Advance the global clock to `target`, letting everything due on the way happen at its own time."""
    steps = 0
    while (due := world.store.next_due("", target)) is not None:
        ahead = due[1] - world.now()
        if ahead > 0:
            world.store.put_document("clock_offset_s", world.offset_s() + ahead)
        step(world, "", target)
        steps += 1
        if steps % STEPS_AT_ONCE == 0:
            await asyncio.sleep(0)
    ahead = target - world.now()
    if ahead > 0:
        world.store.put_document("clock_offset_s", world.offset_s() + ahead)


class Timekeeper:
    """Keeps the clocks: the global one moves by itself, a test clock when it was told to."""

    def __init__(self, world: World, *, tick_s: float = 0.5) -> None:
        self.world = world
        self.tick_s = tick_s
        self._wake = asyncio.Event()

    def wake(self) -> None:
        self._wake.set()

    async def run(self) -> None:
        """Keep time until cancelled. An advance that a restart cut short goes on."""
        while True:
            self._wake.clear()
            await catch_up(self.world, "", self.world.now())
            for clock in [one for one in self.world.store.newest_first(KIND) if one["status"] == "advancing"]:
                await self._advance(clock["id"], clock["status_details"]["advancing"]["target_frozen_time"])
            try:
                async with asyncio.timeout(self.tick_s):
                    await self._wake.wait()
            except TimeoutError:
                continue  # nobody called, but the global clock has moved on

    async def _advance(self, clock: str, target: int) -> None:
        await catch_up(self.world, clock, target)
        with self.world.store.transaction():
            before = self.world.need(KIND, clock)
            after: Json = copied(before) | {"status": "ready", "status_details": {}, "frozen_time": target}
            self.world.change(before, after, "test_helpers.test_clock.ready")
        self.world.committed()


ROUTES: list[Route] = [
    ("POST", "/v1/test_helpers/test_clocks", create_clock),
    ("GET", "/v1/test_helpers/test_clocks", list_clocks),
    ("GET", "/v1/test_helpers/test_clocks/{id}", retrieve_clock),
    ("POST", "/v1/test_helpers/test_clocks/{id}/advance", advance_clock),
    ("DELETE", "/v1/test_helpers/test_clocks/{id}", delete_clock),
]
