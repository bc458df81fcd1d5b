"""Writes on what users set for their prompts. Each is one transaction as the user."""

from uuid import UUID

from libs.common.database import Connection
from libs.common.ids import new_id
from services.agents.prompts import queries
from services.agents.prompts.domain import TemplateIdTaken, TemplateNotFound, Vibe
from services.agents.prompts.queries import Template


async def set_vibe(conn: Connection, user_id: UUID, vibe: Vibe) -> None:
    await queries.upsert_vibe(conn, str(user_id), vibe)


async def create_template(
    conn: Connection, *, user_id: UUID, template_id: UUID | None, name: str, agent_type: str, instructions: str
) -> Template:
    """Create the template once: with the same `template_id` and owner again, return the one that is there."""
    chosen = template_id or new_id()
    created = await queries.insert_template(
        conn,
        template_id=chosen,
        user_id=str(user_id),
        name=name,
        agent_type=agent_type,
        instructions=instructions,
    )
    template = created or await queries.find_template(conn, str(user_id), chosen)
    if template is None:
        raise TemplateIdTaken("This template id is taken.")
    return template


async def change_template(
    conn: Connection, template_id: UUID, *, user_id: str, name: str, instructions: str
) -> Template:
    """Raises TemplateNotFound."""
    template = await queries.update_template(conn, template_id, user_id=user_id, name=name, instructions=instructions)
    if template is None:
        raise TemplateNotFound("There is no such template.")
    return template


async def delete_template(conn: Connection, template_id: UUID, *, user_id: str) -> None:
    """Raises TemplateNotFound."""
    if not await queries.delete_template(conn, template_id, user_id=user_id):
        raise TemplateNotFound("There is no such template.")
