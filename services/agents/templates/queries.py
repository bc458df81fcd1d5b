"""All SQL on template customisations, their versions and their links."""

from datetime import datetime
from uuid import UUID

from libs.common.database import Connection
from services.agents.templates.domain import Template, Text, Version


async def find_template(conn: Connection, user_id: str, template_id: UUID) -> Template | None:
    row = await conn.fetchrow(
        """
        SELECT id, name, agent_type, instructions, version, share_token, created_at, updated_at
        FROM public.user_template_customizations WHERE id = $1 AND user_id = $2
        """,
        template_id,
        user_id,
    )
    return Template(**dict(row)) if row else None


async def list_templates(
    conn: Connection, *, user_id: str, before: tuple[datetime, UUID] | None, limit: int
) -> list[Template]:
    rows = await conn.fetch(
        """
        SELECT id, name, agent_type, instructions, version, share_token, created_at, updated_at
        FROM public.user_template_customizations
        WHERE user_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
        ORDER BY created_at DESC, id DESC
        LIMIT $4
        """,
        user_id,
        *(before or (None, None)),
        limit,
    )
    return [Template(**dict(row)) for row in rows]


async def insert_template(conn: Connection, *, template_id: UUID, user_id: str, text: Text) -> None:
    """Change nothing if the id is taken: by a repetition of the same request, or by somebody else's row."""
    await conn.execute(
        """
        WITH created AS (
            INSERT INTO public.user_template_customizations (id, user_id, name, agent_type, instructions)
            VALUES ($1, $2, $3, $4, $5)
            -- ON CONFLICT: a retried request chose the same id and finds its own row.
            ON CONFLICT (id) DO NOTHING
            RETURNING id, user_id, version, name, instructions
        )
        INSERT INTO agents.template_versions (template_id, user_id, version, name, instructions)
        SELECT id, user_id, version, name, instructions FROM created
        """,
        template_id,
        user_id,
        text.name,
        text.agent_type,
        text.instructions,
    )


async def update_template(
    conn: Connection, template_id: UUID, *, user_id: str, name: str, instructions: str
) -> Template | None:
    """Write the next version. What changes nothing makes none; None if the user has no such template."""
    row = await conn.fetchrow(
        """
        WITH changed AS (
            UPDATE public.user_template_customizations
            SET name = $3, instructions = $4, updated_at = now(),
                version = version + CASE WHEN (name, instructions) = ($3, $4) THEN 0 ELSE 1 END
            WHERE id = $1 AND user_id = $2
            RETURNING id, user_id, name, agent_type, instructions, version, share_token, created_at, updated_at
        ), kept AS (
            INSERT INTO agents.template_versions (template_id, user_id, version, name, instructions)
            SELECT id, user_id, version, name, instructions FROM changed
            -- ON CONFLICT: the same text again is the same version.
            ON CONFLICT (template_id, version) DO NOTHING
        )
        SELECT id, name, agent_type, instructions, version, share_token, created_at, updated_at FROM changed
        """,
        template_id,
        user_id,
        name,
        instructions,
    )
    return Template(**dict(row)) if row else None


async def forget_old_versions(conn: Connection, template_id: UUID, *, keep: int) -> None:
    await conn.execute(
        """
        DELETE FROM agents.template_versions WHERE template_id = $1 AND version <= (
            SELECT max(version) - $2 FROM agents.template_versions WHERE template_id = $1
        )
        """,
        template_id,
        keep,
    )


async def list_versions(conn: Connection, template_id: UUID) -> list[Version]:
    """Newest first. Under row-level security: nothing of templates of others."""
    rows = await conn.fetch(
        """
        SELECT version, name, instructions, created_at FROM agents.template_versions
        WHERE template_id = $1 ORDER BY version DESC
        """,
        template_id,
    )
    return [Version(**dict(row)) for row in rows]


async def find_version(conn: Connection, template_id: UUID, version: int) -> Version | None:
    row = await conn.fetchrow(
        """
        SELECT version, name, instructions, created_at FROM agents.template_versions
        WHERE template_id = $1 AND version = $2
        """,
        template_id,
        version,
    )
    return Version(**dict(row)) if row else None


async def share_template(conn: Connection, template_id: UUID, *, user_id: str, token: UUID) -> Template | None:
    """Give the template a link; one that it has already stays."""
    row = await conn.fetchrow(
        """
        UPDATE public.user_template_customizations SET share_token = coalesce(share_token, $3)
        WHERE id = $1 AND user_id = $2
        RETURNING id, name, agent_type, instructions, version, share_token, created_at, updated_at
        """,
        template_id,
        user_id,
        token,
    )
    return Template(**dict(row)) if row else None


async def unshare_template(conn: Connection, template_id: UUID, *, user_id: str) -> bool:
    ended = await conn.fetchval(
        """
        UPDATE public.user_template_customizations SET share_token = NULL WHERE id = $1 AND user_id = $2 RETURNING true
        """,
        template_id,
        user_id,
    )
    return ended is not None


async def find_shared(conn: Connection, token: UUID) -> Text | None:
    """What is behind a link, whoever asks: the token is the right to read it. Nothing of its owner."""
    row = await conn.fetchrow(
        "SELECT name, agent_type, instructions FROM public.user_template_customizations WHERE share_token = $1", token
    )
    return Text(**dict(row)) if row else None


async def delete_template(conn: Connection, template_id: UUID, *, user_id: str) -> bool:
    deleted = await conn.fetchval(
        "DELETE FROM public.user_template_customizations WHERE id = $1 AND user_id = $2 RETURNING true",
        template_id,
        user_id,
    )
    return deleted is not None


async def delete_all_of(conn: Connection, user_id: str) -> None:
    """Delete the user's templates; their versions follow by foreign key."""
    await conn.execute("DELETE FROM public.user_template_customizations WHERE user_id = $1", user_id)
