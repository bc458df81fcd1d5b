"""SQL of accepted runs."""

from uuid import UUID

from libs.common.database import Connection, Record
from libs.common.events.gateway import RunRequested


async def find_accepted_run(conn: Connection, *, run_id: UUID, user_id: UUID) -> Record | None:
    """The acceptance itself: a run's request is an outbox row under the run's id, kept for days."""
    return await conn.fetchrow(
        """
        SELECT data ->> 'agent_type' AS agent_type, created_at FROM outbox
        WHERE id = $1 AND type = $2 AND subject = $3
        """,
        run_id,
        RunRequested.type,
        str(user_id),
    )
