"""Many who ask for the same quota at once, through several processes' pools; sound, or by looking before acting."""

import asyncio
from collections.abc import Generator, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from typing import Final
from uuid import UUID

from libs.common.database import Connection, Database, DatabaseUnavailable
from libs.common.ids import new_id
from libs.common.plans import Plans
from services.metering import operations
from services.metering.domain import Metric, QuotaExceeded, Usage
from services.metering.taking import Wanted
from tests.faults.verdict import Verdict, chance_of
from tests.harness.database import TestDatabase
from tests.integration.metering.accounts import metering_of, plans_with, reserve

POOLS: Final = 3
USERS: Final = 5
ASKS_EACH: Final = 60
CHECK_THEN_ACT: Final = "check, then act"


async def ask_at_once(database: TestDatabase, *, seed: int, control: str = "") -> Verdict:
    """Users with a limit each ask far too often, all in the same moment. Each grant is one hold."""
    chance = chance_of(seed)
    plans = plans_with(runs=chance.randint(10, 30))
    limit, users = plans.tier("free").limits[Metric.RUNS], [new_id() for _ in range(USERS)]
    asks = [user for user in users for _ in range(ASKS_EACH)]
    chance.shuffle(asks)
    async with AsyncExitStack() as exits:
        pools = [await exits.enter_async_context(metering_of(database)) for _ in range(POOLS)]
        with naive_quota() if control == CHECK_THEN_ACT else nullcontext():
            granted = await asyncio.gather(*(_ask(chance.choice(pools), user, plans) for user in asks))
    held = await database.fetch("SELECT user_id, sum(held_value)::int AS held FROM usage_metrics GROUP BY user_id")
    by_user = {row["user_id"]: row["held"] for row in held}
    return Verdict(
        seed=seed,
        attempt=len(asks),
        ack=sum(granted),
        lost=sum(max(limit - by_user.get(str(user), 0), 0) for user in users),
        dup=abs(sum(by_user.values()) - sum(granted)),
        overshoot=sum(max(by_user.get(str(user), 0) - limit, 0) for user in users),
        notes={"limit": limit, "users": USERS, "control": control or "none"},
    )


async def _ask(pool: Database, user_id: UUID, plans: Plans) -> bool:
    """As somebody asks who is told that the house is busy: again, under the same id."""
    hold_id = new_id()
    while True:
        try:
            await reserve(pool, user_id, hold_id=hold_id, amounts={Metric.RUNS: 1}, plans=plans)
        except DatabaseUnavailable:  # no connection within two seconds, or the commit's outcome is not known
            continue
        except QuotaExceeded:
            return False
        return True


@contextmanager
def naive_quota() -> Generator[None, None, None]:
    sound = operations.take
    operations.take = _check_then_act
    try:
        yield
    finally:
        operations.take = sound


async def _check_then_act(conn: Connection, plans: Plans, wanted: Sequence[Wanted]) -> dict[UUID, QuotaExceeded]:
    """A quota as it is written at first: read the counter, compare, add. Each of its statements is right."""
    limit, refused = plans.tier("free").limits[Metric.RUNS], dict[UUID, QuotaExceeded]()
    for ask in wanted:
        asked, counter = ask.amounts[Metric.RUNS], ask.counter(Metric.RUNS)
        held = await conn.fetchval(
            "SELECT held_value FROM usage_metrics WHERE (user_id, metric_type, period_start) = ($1, $2, $3)", *counter
        )
        if (held or 0) + asked > limit:
            usage = Usage(used=0, held=held)
            refused[ask.key] = QuotaExceeded(
                metric=Metric.RUNS,
                asked=asked,
                limit=limit,
                usage=usage,
                resets_at=ask.period.end,
                now=ask.account.read_at,
            )
            continue
        await conn.execute(
            """
            INSERT INTO usage_metrics AS u (user_id, metric_type, period_start, period_end, held_value)
            VALUES ($1, $2, $3, $4, $5)
            -- ON CONFLICT adds to the newest value, and the limit was compared with an older one.
            ON CONFLICT (user_id, metric_type, period_start)
                DO UPDATE SET held_value = u.held_value + EXCLUDED.held_value
            """,
            *counter,
            ask.period.end,
            asked,
        )
    return refused
