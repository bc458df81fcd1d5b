"""What gathers in an outbox while the broker is away arrives soon after its return, once and by an index."""

import asyncio
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import asyncpg

from libs.common.events.gateway import EntitlementsChanged
from libs.common.ids import new_id
from ops.stack.stack import Stack
from ops.stack.supervisor import Supervisor
from tests.harness.patience import eventually

USERS: Final = 100
CHANGES: Final = 500
"""Of each user: fifty thousand events in all."""
SENT_WITHIN_S: Final = 60
HANDLED_WITHIN_S: Final = 120
CONSUMERS: Final = ("metering", "agents")
UNSENT: Final = "SELECT count(*) FROM gateway.outbox WHERE subject = ANY($1) AND sent_at IS NULL"
CLAIM: Final = """
    SELECT id FROM gateway.outbox WHERE sent_at IS NULL AND claimed_until <= now() ORDER BY id LIMIT 500
    FOR UPDATE SKIP LOCKED
"""


async def gather(superuser: "asyncpg.Connection[asyncpg.Record]", users: Sequence[str]) -> None:
    """A commit for each version, as if everybody's plan changed all the time."""
    for version in range(1, CHANGES + 1):
        await superuser.execute(
            """
            SELECT gateway.emit($1, user_id, jsonb_build_object(
                'user_id', user_id, 'version', $3::integer, 'tier', 'pro', 'status', 'active'
            ))
            FROM unnest($2::text[]) AS named(user_id)
            """,
            EntitlementsChanged.type,
            users,
            version,
        )


async def has_all(superuser: "asyncpg.Connection[asyncpg.Record]", service: str, users: Sequence[str]) -> bool:
    """Whether the service has handled every one, and holds each user's last."""
    handled = await superuser.fetchval(
        f"""
        SELECT count(*) FROM {service}.inbox
        WHERE event_id IN (SELECT id FROM gateway.outbox WHERE subject = ANY($1))
        """,  # noqa: S608 - one of two names
        users,
    )
    versions = await superuser.fetch(
        f"SELECT DISTINCT version FROM {service}.entitlements WHERE user_id = ANY($1)",  # noqa: S608
        users,
    )
    return handled == USERS * CHANGES and [row["version"] for row in versions] == [CHANGES]


async def test_fifty_thousand_events_arrive_within_a_minute_of_the_brokers_return(stack: Stack) -> None:
    users, supervisor = [str(new_id()) for _ in range(USERS)], Supervisor(stack.home)
    superuser = await asyncpg.connect(stack.operator_environment()["SUPERUSER_DATABASE_URL"])
    try:
        await asyncio.to_thread(supervisor.stop, ["rabbitmq-1"])
        try:
            await gather(superuser, users)
            assert await superuser.fetchval(UNSENT, users) == USERS * CHANGES
            await superuser.execute("ANALYZE gateway.outbox")
            plan = await superuser.fetch(f"EXPLAIN {CLAIM}")
        finally:
            await asyncio.to_thread(supervisor.start, "rabbitmq-1")
        assert "outbox_unsent" in "\n".join(row[0] for row in plan)
        returned = time.monotonic()

        async def is_sent() -> bool:
            return not await superuser.fetchval(UNSENT, users)

        await eventually(is_sent, within_s=SENT_WITHIN_S, every_s=0.2)
        sent_s = time.monotonic() - returned
        for service in CONSUMERS:
            await eventually(partial(has_all, superuser, service, users), within_s=HANDLED_WITHIN_S, every_s=0.5)
        print(
            f"{USERS * CHANGES} events sent {sent_s:.1f} s after the broker's return, "
            f"handled by {' and '.join(CONSUMERS)} after {time.monotonic() - returned:.1f} s"
        )
    finally:
        await superuser.close()
