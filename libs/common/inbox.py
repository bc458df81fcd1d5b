"""The inbox makes a redelivered message harmless: its row commits with the handler's effect, or neither does."""

from uuid import UUID

from libs.common.database import Connection


async def claim(conn: Connection, *, event_id: UUID, event_type: str) -> bool:
    """Return False if this service has already handled the event. Safe against a second delivery at the same time."""
    inserted = await conn.fetchval(
        """
        INSERT INTO inbox (event_id, type) VALUES ($1, $2)
        -- ON CONFLICT closes the race of two deliveries: the second waits for the first's commit, then sees its row.
        ON CONFLICT (event_id) DO NOTHING
        RETURNING event_id
        """,
        event_id,
        event_type,
    )
    return inserted is not None
