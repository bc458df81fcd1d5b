"""The load of a soak, put together: who works, what is written down, and who looks whether the promises are kept."""

import asyncio
import random
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

import httpx

from ops.stack.stack import Stack
from tests.faults.soak.books import Books
from tests.faults.soak.door import Stopped, open_door
from tests.faults.soak.money import Stripe
from tests.faults.soak.people import People
from tests.faults.soak.promises import Promises
from tests.faults.soak.usage import report_usage

SETTINGS: Final[Mapping[str, str]] = {"RATE_LIMIT_MAX_REQUESTS": "10000000", "AUTH_RATE_LIMIT_MAX_REQUESTS": "10000000"}
"""For the stack: three people ask as often as three hundred."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    over: asyncio.Event
    books: Books
    people: People
    stripe: Stripe
    promises: Promises
    visitors: int
    service_key: str

    def start(self, group: asyncio.TaskGroup) -> None:
        """Everybody at work until `over`; what they have begun by then they bring to its end."""
        for _ in range(self.visitors):
            group.create_task(self.people.visit())
        group.create_task(self.people.ask_for_too_much())
        group.create_task(report_usage(self.people, self.service_key))
        group.create_task(self.stripe.post_office(self.people.door, self.over))
        group.create_task(self.promises.watch(self.over))


@asynccontextmanager
async def open_load(stack: Stack, *, seed: int, visitors: int) -> AsyncGenerator[Load, None]:
    """For a running stack. What it has done before is not judged."""
    values = stack.operator_environment()
    books, over = Books(), asyncio.Event()
    chances = [random.Random(f"{seed} {part}") for part in ("people", "money")]  # noqa: S311 - a schedule, no secret
    async with AsyncExitStack() as exits:
        client = await exits.enter_async_context(httpx.AsyncClient(timeout=20))
        door = await exits.enter_async_context(open_door(values, books, Stopped(), chances[0]))
        stripe = Stripe(
            base_url=values["STRIPE_API_BASE"], secret_key=values["STRIPE_SECRET_KEY"], client=client, chance=chances[1]
        )
        promises = Promises(
            superuser_url=values["SUPERUSER_DATABASE_URL"], amqp_url=values["AMQP_URL"], books=books, stripe=stripe
        )
        await promises.remember()
        yield Load(
            over=over,
            books=books,
            people=People(door=door, stripe=stripe, over=over),
            stripe=stripe,
            promises=promises,
            visitors=visitors,
            service_key=values["SUPABASE_SERVICE_ROLE_KEY"],
        )
