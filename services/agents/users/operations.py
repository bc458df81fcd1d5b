"""Writes on behalf of a user's whole existence: tier, defaults, erasure."""

from uuid import UUID

from libs.common import outbox
from libs.common.database import Connection
from libs.common.events.agents import UserErasedByAgents
from services.agents.background import queries as background_queries
from services.agents.prompts import queries as prompt_queries
from services.agents.runs import queries as run_queries
from services.agents.templates import queries as template_queries
from services.agents.users import queries


async def apply_tier(conn: Connection, user_id: str, *, tier: str, version: int) -> None:
    await queries.upsert_tier(conn, user_id, tier=tier, version=version)


async def welcome_user(conn: Connection, user_id: str) -> None:
    """Give a new user neutral sliders, unless the user has set them already or is gone again."""
    if await queries.hold_user(conn, user_id):
        await prompt_queries.insert_default_vibe(conn, user_id)


async def erase_user(conn: Connection, user_id: UUID) -> None:
    """Delete all that agents holds of the user, also what is still running, and say so.

    Metering erases holds and counters itself, so runs that vanish here need no `run_finished`. Workers that still
    stream one of them find themselves fenced at their next write.
    """
    key = str(user_id)
    await queries.mark_erased(conn, key)
    await run_queries.delete_runs_of(conn, key)
    await background_queries.delete_all_of(conn, key)
    await template_queries.delete_all_of(conn, key)
    await prompt_queries.delete_all_of(conn, key)
    await outbox.add(conn, UserErasedByAgents(user_id=user_id))
