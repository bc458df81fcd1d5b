"""Who comes near a limit, or to it, is told by mail: once, in words, and only if they did not decline."""

from typing import Any
from uuid import UUID

import pytest
import redis.asyncio

from libs.common.database import Connection, connect
from libs.common.events.metering import ThresholdReached
from libs.common.ids import new_id
from services.gateway import consumers
from services.gateway.mail.jobs import MailSender
from services.gateway.sessions import StandingCache
from tests.builders import an_event
from tests.harness.database import TestDatabase


async def reach(conn: Connection, user_id: UUID, *, percent: int, used: int) -> None:
    announcer = consumers.Announcer(redis.asyncio.Redis())
    table = consumers.subscriptions(announcer, StandingCache(), frontend_url="https://app.example.com/")
    (subscription,) = (one for one in table if one.event is ThresholdReached)
    event = an_event(ThresholdReached, user_id=user_id, metric="runs", percent=percent, used=used, limit=50)
    await subscription.handler(event, conn)


async def mails_after(
    test_database: TestDatabase, *reached: tuple[int, int], metadata: dict[str, Any] | None = None
) -> list[str]:
    """The texts a user gets who reaches these (percent, used) of fifty runs."""
    user_id = new_id()
    await test_database.execute(
        "INSERT INTO auth.users (id, email, raw_user_meta_data) VALUES ($1, $2, $3)",
        user_id,
        f"{user_id}@example.com",
        metadata or {},
    )
    async with connect(test_database.url("venture_gateway"), application_name="test") as database:
        async with database.transaction() as conn:
            for percent, used in reached:
                await reach(conn, user_id, percent=percent, used=used)
        sender = MailSender(database, smtp_url="smtp://127.0.0.1:9", mail_from="desk@example.com")
        rows = await test_database.fetch("SELECT letter, content FROM gateway.mails ORDER BY created_at, id")
        letters = [sender.compose("ada@example.com", row["letter"], row["content"]) for row in rows]
    told = "SELECT count(*) FROM gateway.user_events WHERE user_id = $1"
    assert await test_database.fetchval(told, user_id) == len(reached)
    bodies = [letter.get_body(("plain",)) for letter in letters]
    return [f"{letter['Subject']}\n{body.get_content()}" for letter, body in zip(letters, bodies, strict=True) if body]


async def test_each_threshold_is_a_letter_that_says_how_much_and_until_when(test_database: TestDatabase) -> None:
    near, at = await mails_after(test_database, (80, 40), (100, 50))
    assert near.startswith("You have used 80 % of your runs\nYou have used 80 % of the runs that your plan includes")
    assert "https://app.example.com/pricing" in near
    assert at.startswith("You have used all of your runs\n")
    assert "with a larger plan at once" in at


async def test_who_jumps_over_several_thresholds_gets_the_last_letter_alone(test_database: TestDatabase) -> None:
    (only,) = await mails_after(test_database, (80, 60), (100, 60))
    assert only.startswith("You have used all of your runs\n")


@pytest.mark.parametrize(("metadata", "count"), [({"usage_mails": False}, 0), ({"usage_mails": True}, 1)])
async def test_who_declined_is_told_in_the_product_alone(
    test_database: TestDatabase, metadata: dict[str, Any], count: int
) -> None:
    assert len(await mails_after(test_database, (80, 40), metadata=metadata)) == count
