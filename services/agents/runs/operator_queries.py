"""SQL of runs as operators look at them: whosever they are, and when each event of one was written."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from libs.common.database import Connection, Record
from services.agents.runs.domain import TERMINAL_EVENT_TYPES


async def list_runs(
    conn: Connection, *, user_id: str | None, status: str | None, before: tuple[datetime, UUID] | None, limit: int
) -> list[Record]:
    """Newest first, behind the cursor, without their texts."""
    return await conn.fetch(
        """
        SELECT id, user_id, status, agent_type, left(task, 160) AS task, model_used, input_tokens, output_tokens,
            attempt, created_at, started_at, finished_at
        FROM public.agent_runs
        WHERE ($1::text IS NULL OR user_id = $1) AND ($2::text IS NULL OR status = $2)
          AND ($3::timestamptz IS NULL OR (created_at, id) < ($3, $4::uuid))
        ORDER BY created_at DESC, id DESC LIMIT $5
        """,
        user_id,
        status,
        *(before or (None, None)),
        limit,
    )


async def list_events(conn: Connection, run_id: UUID, *, limit: int) -> list[Record]:
    return await conn.fetch(
        "SELECT seq, type, data, created_at FROM agents.run_events WHERE run_id = $1 ORDER BY seq LIMIT $2",
        run_id,
        limit,
    )


class Head(NamedTuple):
    """The newest event of a run: its number, and whether it is the last there will be."""

    seq: int
    is_end: bool


async def find_heads(conn: Connection, run_ids: Sequence[UUID]) -> dict[UUID, Head]:
    """One step in the index for each run."""
    rows = await conn.fetch(
        """
        SELECT asked.id, head.seq, head.type = ANY($2) AS is_end FROM unnest($1::uuid[]) AS asked (id)
        CROSS JOIN LATERAL (
            SELECT e.seq, e.type FROM agents.run_events e WHERE e.run_id = asked.id ORDER BY e.seq DESC LIMIT 1
        ) AS head
        """,
        run_ids,
        list(TERMINAL_EVENT_TYPES),
    )
    return {row["id"]: Head(row["seq"], row["is_end"]) for row in rows}
