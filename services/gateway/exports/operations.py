"""Recording that something was used, beside which nothing else happens here."""

from collections.abc import Mapping
from uuid import UUID

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.gateway import QuotaUsed


async def record_use(conn: Connection, *, user_id: UUID, hold_id: UUID, amounts: Mapping[str, int]) -> None:
    """Metering books it and ends the hold. Repeated, it is booked once: the hold's id is what it is booked under."""
    await outbox.add(conn, QuotaUsed(user_id=user_id, hold_id=hold_id, amounts=dict(amounts)))
