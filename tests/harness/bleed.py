"""Many users over few connections, with work that breaks off anywhere: does one ever see another's rows?"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from libs.common import database as db
from libs.common.database import Database, DatabaseUnavailable
from libs.common.ids import new_id
from tests.harness.database import TestDatabase

CONNECTIONS = 5


class Broken(Exception):
    pass


@dataclass(kw_only=True)
class Tally:
    asked: int = 0
    completed: int = 0
    broken: int = 0
    cancelled: int = 0
    deviations: list[str] = field(default_factory=list[str])


async def interleave(test_database: TestDatabase, *, requests: int, users: int, seed: int) -> Tally:
    """Each request reads as its user, or as the service; a third of them raise or are cancelled at a random place."""
    chance = random.Random(seed)  # noqa: S311 - an order that comes again
    ids = [new_id() for _ in range(users)]
    for user_id in ids:
        await test_database.execute("INSERT INTO public.vibe_configs (user_id) VALUES ($1)", str(user_id))
    tally = Tally()
    async with db.connect(
        test_database.url("venture_agents"), application_name="bleed", min_size=CONNECTIONS, max_size=CONNECTIONS
    ) as database:
        plan = [(chance.choice(ids), chance.random(), chance.random()) for _ in range(requests)]
        for start in range(0, requests, 25):
            await asyncio.gather(*(_request(database, tally, ids, one) for one in plan[start : start + 25]))
    return tally


async def _request(database: Database, tally: Tally, ids: Sequence[UUID], one: tuple[UUID, float, float]) -> None:
    user_id, kind, when = one
    tally.asked += 1
    if kind < 0.15:
        await _look_as_service(database, tally, len(ids))
        return
    work = asyncio.create_task(_look_as_user(database, tally, user_id, breaks=kind < 0.3))
    if kind > 0.85:
        await asyncio.wait({work}, timeout=when * 0.01)
        work.cancel()
    try:
        await work
        tally.completed += 1
    except Broken:
        tally.broken += 1
    except asyncio.CancelledError:
        tally.cancelled += 1
    except DatabaseUnavailable:
        tally.broken += 1  # all five in use for longer than anybody waits


async def _look_as_user(database: Database, tally: Tally, user_id: UUID, *, breaks: bool) -> None:
    async with database.transaction_as({"sub": str(user_id), "role": "authenticated"}) as conn:
        seen = [row["user_id"] for row in await conn.fetch("SELECT user_id FROM public.vibe_configs")]
        if seen != [str(user_id)]:
            tally.deviations.append(f"{user_id} saw {seen[:3]}")
        if breaks:
            raise Broken
        await conn.execute("UPDATE public.vibe_configs SET updated_at = now()")


async def _look_as_service(database: Database, tally: Tally, users: int) -> None:
    """The next checkout: the login role again, and nobody's claims."""
    async with database.transaction() as conn:
        row = await conn.fetchrow(
            """
            SELECT current_user AS role, nullif(current_setting('request.jwt.claims', true), '') AS claims,
                   (SELECT count(*) FROM public.vibe_configs) AS rows
            """
        )
    tally.completed += 1
    if row is None or (row["role"], row["claims"], row["rows"]) != ("venture_agents", None, users):
        tally.deviations.append(f"the service was {row and dict(row)}")
