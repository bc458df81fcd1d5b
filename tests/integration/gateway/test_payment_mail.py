"""A payment that failed is told in the user's stream and by mail."""

import redis.asyncio

from libs.common.database import connect
from libs.common.events.billing import PaymentFailed
from libs.common.ids import new_id
from services.gateway import consumers
from services.gateway.mail.jobs import MailSender
from services.gateway.sessions import StandingCache
from tests.builders import an_event
from tests.harness.database import TestDatabase


async def test_a_failed_payment_is_mailed_with_the_way_to_pay_and_to_the_portal(test_database: TestDatabase) -> None:
    user_id, stranger = new_id(), new_id()
    await test_database.execute("INSERT INTO auth.users (id, email) VALUES ($1, 'ada@example.com')", user_id)
    announcer = consumers.Announcer(redis.asyncio.Redis())
    table = consumers.subscriptions(announcer, StandingCache(), frontend_url="https://app.example.com/")
    (subscription,) = (one for one in table if one.event is PaymentFailed)
    async with connect(test_database.url("venture_gateway"), application_name="test") as database:
        async with database.transaction() as conn:
            await subscription.handler(
                an_event(PaymentFailed, user_id=user_id, invoice_url="https://pay.example/in_1"), conn
            )
        (row,) = await test_database.fetch("SELECT address, letter, content FROM gateway.mails")
        assert (row["address"], row["letter"]) == ("ada@example.com", "payment_failed")
        sender = MailSender(database, smtp_url="smtp://127.0.0.1:9", mail_from="desk@example.com")
        letter = sender.compose(row["address"], row["letter"], row["content"])
    text = letter.get_body(("plain",))
    assert text is not None
    assert "https://pay.example/in_1" in text.get_content()
    assert "https://app.example.com/billing" in text.get_content()
    assert await test_database.fetchval("SELECT count(*) FROM gateway.user_events") == 1
    async with (
        connect(test_database.url("venture_gateway"), application_name="test") as database,
        database.transaction() as conn,
    ):
        await conn.execute("DELETE FROM auth.users WHERE id = $1", user_id)
        await conn.execute("INSERT INTO auth.users (id, email) VALUES ($1, '')", stranger)
        await subscription.handler(an_event(PaymentFailed, user_id=stranger), conn)
    assert await test_database.fetchval("SELECT count(*) FROM gateway.mails") == 1
