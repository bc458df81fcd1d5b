"""Writes on what users set for their prompts. One transaction as the user."""

from uuid import UUID

from libs.common.database import Connection
from services.agents.prompts import queries
from services.agents.prompts.domain import Vibe


async def set_vibe(conn: Connection, user_id: UUID, vibe: Vibe) -> None:
    await queries.upsert_vibe(conn, str(user_id), vibe)
