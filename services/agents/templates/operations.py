"""Writes on template customisations. Each is one transaction, and safe to repeat."""

from uuid import UUID, uuid4

from libs.common.database import Connection
from services.agents.templates import queries
from services.agents.templates.domain import (
    KEPT_VERSIONS,
    SharedTemplateNotFound,
    Template,
    TemplateIdTaken,
    TemplateNotFound,
    TemplateVersionNotFound,
    Text,
)
from services.agents.users import queries as user_queries

NO_SUCH = "There is no such template."


async def create_template(conn: Connection, *, user_id: UUID, template_id: UUID, text: Text) -> Template:
    """Create the template once; with the same id and owner again, return the one that is there.

    Raises TemplateIdTaken for an id that is another's, and TemplateNotFound where the user is just being erased.
    """
    key = str(user_id)
    if not await user_queries.hold_user(conn, key):
        raise TemplateNotFound(NO_SUCH)
    await queries.insert_template(conn, template_id=template_id, user_id=key, text=text)
    template = await queries.find_template(conn, key, template_id)
    if template is None:
        raise TemplateIdTaken("This template id is taken.")
    return template


async def change_template(
    conn: Connection, template_id: UUID, *, user_id: str, name: str, instructions: str
) -> Template:
    """Raises TemplateNotFound."""
    template = await queries.update_template(conn, template_id, user_id=user_id, name=name, instructions=instructions)
    if template is None:
        raise TemplateNotFound(NO_SUCH)
    await queries.forget_old_versions(conn, template_id, keep=KEPT_VERSIONS)
    return template


async def restore_version(conn: Connection, template_id: UUID, *, user_id: str, version: int) -> Template:
    """Make an earlier text the present one, as a version of its own: history only grows. Raises TemplateNotFound."""
    if await queries.find_template(conn, user_id, template_id) is None:
        raise TemplateNotFound(NO_SUCH)
    earlier = await queries.find_version(conn, template_id, version)
    if earlier is None:
        raise TemplateVersionNotFound("The template has no such version, or none any more.")
    return await change_template(
        conn, template_id, user_id=user_id, name=earlier.name, instructions=earlier.instructions
    )


async def share_template(conn: Connection, template_id: UUID, *, user_id: str) -> Template:
    """The token is random throughout, unlike ids, which begin with the time: nobody guesses a link."""
    template = await queries.share_template(conn, template_id, user_id=user_id, token=uuid4())
    if template is None:
        raise TemplateNotFound(NO_SUCH)
    return template


async def unshare_template(conn: Connection, template_id: UUID, *, user_id: str) -> None:
    """The link ends at once; copies that others have taken stay theirs. Raises TemplateNotFound."""
    if not await queries.unshare_template(conn, template_id, user_id=user_id):
        raise TemplateNotFound(NO_SUCH)


async def get_shared(conn: Connection, token: UUID) -> Text:
    """Raises SharedTemplateNotFound."""
    text = await queries.find_shared(conn, token)
    if text is None:
        raise SharedTemplateNotFound
    return text


async def delete_template(conn: Connection, template_id: UUID, *, user_id: str) -> None:
    """Raises TemplateNotFound."""
    if not await queries.delete_template(conn, template_id, user_id=user_id):
        raise TemplateNotFound(NO_SUCH)
