"""The inbox makes a redelivered message harmless: its row commits with the handler's effect, or neither does."""

from collections.abc import Sequence
from uuid import UUID

from libs.common.database import Connection
from libs.common.events import Event


async def claim(conn: Connection, events: Sequence[Event]) -> set[UUID]:
    """Return the ids this service has not handled yet. Safe against a second delivery at the same time."""
    rows = await conn.fetch(
        """
        INSERT INTO inbox (event_id, type)
        -- In one order, or two batches with the same messages would wait for each other's rows.
        SELECT event_id, type FROM unnest($1::uuid[], $2::text[]) AS event(event_id, type) ORDER BY event_id
        -- ON CONFLICT closes the race of two deliveries: the second waits for the first's commit, then sees its row.
        ON CONFLICT (event_id) DO NOTHING
        RETURNING event_id
        """,
        [event.event_id for event in events],
        [event.type for event in events],
    )
    return {row["event_id"] for row in rows}
