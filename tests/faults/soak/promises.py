"""The promises of a soak, read from the tables: some hold in every snapshot while it runs, all of them at the end."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Any, Final, LiteralString

import aio_pika
import asyncpg
from aio_pika.exceptions import ChannelNotFoundEntity

from libs.common.broker import parked_queue
from libs.common.plans import load_plans
from tests.faults.oracle import INVARIANTS, violations
from tests.faults.soak.books import KEPT_EXAMPLES, Books, BrokenPromise
from tests.faults.soak.money import Stripe, tier_of
from tests.faults.verdict import Verdict, judge
from tests.harness import subscriptions

OFTEN_S: Final = 0.5
SELDOM_S: Final = 10.0
SETTLED_WITHIN_S: Final = 120.0

OVERSHOOT: Final[LiteralString] = """
    SELECT coalesce(max(metric_value + held_value - $3), 0) FROM usage_metrics
    WHERE user_id = ANY($1) AND metric_type = $2
"""
# Each counts what may not be in any single snapshot.
ALWAYS: Final[dict[str, LiteralString]] = {
    "runs told to end more than once": INVARIANTS["runs told to end more than once"],
    "gaps in streams": INVARIANTS["gaps in streams"],
    "runs charged more than once": """
        SELECT count(*) AS n FROM (
            SELECT event_id FROM metering.usage_ledger WHERE source = 'agents.run' AND metric_type = 'runs'
            GROUP BY event_id HAVING sum(amount) > 1
        ) AS twice
    """,
    "usage events booked more than once": """
        SELECT count(*) AS n FROM (
            SELECT 1 FROM metering.usage_ledger WHERE source = 'service:soak'
            GROUP BY event_id, metric_type HAVING count(*) > 1
        ) AS twice
    """,
    "counters that differ from the ledger, or holds from what is held": "SELECT count(*) AS n FROM metering.drift",
    "runs waiting or working for five minutes": """
        SELECT count(*) AS n FROM agent_runs WHERE finished_at IS NULL AND created_at < now() - interval '5 minutes'
    """,
    "events unsent for five minutes": """
        SELECT count(*) AS n FROM (
            SELECT created_at FROM gateway.outbox WHERE sent_at IS NULL
            UNION ALL SELECT created_at FROM agents.outbox WHERE sent_at IS NULL
            UNION ALL SELECT created_at FROM metering.outbox WHERE sent_at IS NULL
            UNION ALL SELECT created_at FROM billing.outbox WHERE sent_at IS NULL
        ) AS unsent WHERE created_at < now() - interval '5 minutes'
    """,
}


@dataclass(slots=True, kw_only=True)
class Promises:
    superuser_url: str
    amqp_url: str
    books: Books
    stripe: Stripe
    overshoot: int = 0
    snapshots: int = 0
    settled_s: float | None = None
    left: dict[str, Any] = field(default_factory=dict[str, Any])
    before: set[str] = field(default_factory=set[str])
    """What had happened already when the load began."""

    async def remember(self) -> None:
        self.before = set(await self._names(EFFECTS))

    async def watch(self, over: asyncio.Event) -> None:
        """Look until it is over. A snapshot that the database does not give, because it is a victim, is left out."""
        seldom_at = 0.0
        while not over.is_set():
            await asyncio.sleep(OFTEN_S)
            try:
                connection = await asyncpg.connect(self.superuser_url, timeout=5)
            except (OSError, TimeoutError, asyncpg.PostgresError):
                continue
            try:
                await self._look_for_overshoot(connection)
                if time.monotonic() - seldom_at > SELDOM_S:
                    await self._look_at_all(connection)
                    seldom_at = time.monotonic()
                self.snapshots += 1
            except (
                OSError,
                TimeoutError,
                asyncpg.PostgresError,
                asyncpg.InterfaceError,
                asyncpg.InternalClientError,  # the driver's state, when its connection breaks in a certain moment
            ):
                continue
            finally:
                connection.terminate()

    async def _look_for_overshoot(self, connection: asyncpg.Connection) -> None:
        for metric, limit in load_plans().tiers["free"].limits.items():
            over = await connection.fetchval(OVERSHOOT, list(self.books.limited), metric, limit, timeout=10)
            self.overshoot = max(self.overshoot, over)
        if self.overshoot:
            raise BrokenPromise(f"a limit was passed by {self.overshoot}")

    async def _look_at_all(self, connection: asyncpg.Connection) -> None:
        for name, statement in ALWAYS.items():
            if count := await connection.fetchval(statement, timeout=30):
                raise BrokenPromise(f"{name}: {count}")

    async def settle(self) -> None:
        """Wait until nothing is under way any more, and the plan of everybody is what Stripe says."""
        began = time.monotonic()
        while True:
            try:
                self.left = {**await violations(self._fetch), **await self._plans_unlike_stripes()}
            except (OSError, TimeoutError, asyncpg.PostgresError) as error:
                self.left = {"the database": repr(error)}
            if not self.left:
                self.settled_s = time.monotonic() - began
                return
            if time.monotonic() - began > SETTLED_WITHIN_S:
                raise BrokenPromise(f"{SETTLED_WITHIN_S:g} s after the last fault: {self.left}")
            await asyncio.sleep(1)

    async def verdict(self, seed: int) -> Verdict:
        """Everything that was accepted, against all that happened. A run that succeeded is owed a charge as well."""
        accepted = [name for names in self.books.accepted.values() for name in names]
        owed = [name for name in await self._names(OWED) if name not in self.before]
        effects = [name for name in await self._names(EFFECTS) if name not in self.before]
        # Runs are named by the house, so that one that nobody was told of is one too many.
        attempted = [name for kind, names in self.books.attempted.items() if kind != "run" for name in names]
        self.left = {
            "lost": sorted({*accepted, *owed} - {*effects})[:KEPT_EXAMPLES],
            "unexpected": sorted({*effects} - {*accepted, *owed, *attempted})[:KEPT_EXAMPLES],
        }
        return judge(
            seed=seed,
            attempted=[*accepted, *owed, *attempted],
            acked=[*accepted, *owed],
            effects=effects,
            ambiguous=self.books.ambiguous,
        )

    async def _names(self, statement: LiteralString) -> list[str]:
        return [row["name"] for row in await self._fetch(statement)]

    async def _plans_unlike_stripes(self) -> dict[str, Any]:
        wrong = 0
        said = {row["user_id"]: row for row in await self._fetch(PLANS)}
        for user_id, subscription_id in self.books.paying.items():
            tier = tier_of(await self.stripe.subscription(subscription_id))
            wrong += {said[user_id][who] for who in ("profile", "account", "metering", "agents")} != {tier}
        return {"plans unlike Stripe's": wrong} if wrong else {}

    async def open_work_at_stripe(self) -> list[dict[str, Any]]:
        """What billing has still to fetch, and why not yet: for whoever finds a plan missing."""
        return await self._fetch(
            """SELECT object_id, wanted - done AS reasons, attempts, last_error, due_at - now() AS due_in,
                   leased_until - now() AS leased_for
               FROM billing.refreshes WHERE done < wanted
               UNION ALL
               SELECT id, NULL, NULL, concat_ws(' ', status, user_id, tier), NULL, NULL
               FROM billing.subscriptions WHERE user_id IS NULL OR tier IS NULL"""
        )

    async def parked(self) -> int:
        connection = await aio_pika.connect(self.amqp_url)
        waiting = 0
        async with connection:
            for queue in subscriptions.ALL:
                channel = await connection.channel()
                try:
                    declared = await channel.declare_queue(parked_queue(queue.queue), passive=True)
                    waiting += declared.declaration_result.message_count or 0
                except ChannelNotFoundEntity:
                    continue  # nothing was ever parked there
        return waiting

    async def _fetch(self, statement: LiteralString) -> list[dict[str, Any]]:
        connection = await asyncpg.connect(self.superuser_url, timeout=5)
        try:
            return [dict(row) for row in await connection.fetch(statement, timeout=60)]
        finally:
            await connection.close()


PLANS: Final[LiteralString] = """
    SELECT p.user_id::text AS user_id,
        p.subscription_tier AS profile, a.tier AS account, m.tier AS metering, g.tier AS agents
    FROM user_profiles AS p
    JOIN billing.accounts AS a ON a.user_id = p.user_id
    LEFT JOIN metering.entitlements AS m ON m.user_id = p.user_id::text
    LEFT JOIN agents.entitlements AS g ON g.user_id = p.user_id::text
"""
OWED: Final[LiteralString] = "SELECT 'charge of ' || id AS name FROM agent_runs WHERE status = 'succeeded'"
EFFECTS: Final[LiteralString] = """
    SELECT email::text AS name FROM auth.users JOIN user_profiles ON user_profiles.user_id = users.id
        WHERE email LIKE '%@example.com'
    UNION ALL SELECT id::text FROM agent_runs WHERE finished_at IS NOT NULL
    UNION ALL SELECT 'charge of ' || event_id FROM metering.usage_ledger
        WHERE source = 'agents.run' AND metric_type = 'runs'
    UNION ALL SELECT event_id FROM metering.usage_ledger WHERE source = 'service:soak' AND metric_type = 'api_calls'
    UNION ALL SELECT id FROM billing.subscriptions
"""
