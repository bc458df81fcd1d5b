"""All SQL on prompt atoms, vibe configurations and template customisations."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from libs.common.database import Connection
from services.agents.prompts.domain import Atom, Vibe


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    id: UUID
    name: str
    agent_type: str
    instructions: str
    created_at: datetime


async def list_atoms(conn: Connection) -> list[Atom]:
    rows = await conn.fetch(
        """
        SELECT key, category, title, body, tags, is_default, position, version, weight, target_roles, verticals,
            incompatible_with, approvals, rejections
        FROM public.prompt_atoms
        WHERE is_active ORDER BY category, position, key
        """
    )
    return [
        Atom(
            key=row["key"],
            category=row["category"],
            title=row["title"],
            body=row["body"],
            tags=frozenset(row["tags"]),
            is_default=row["is_default"],
            position=row["position"],
            version=row["version"],
            weight=row["weight"],
            target_roles=frozenset(row["target_roles"]),
            verticals=frozenset(row["verticals"]),
            incompatible_with=frozenset(row["incompatible_with"]),
            approvals=row["approvals"],
            rejections=row["rejections"],
        )
        for row in rows
    ]


async def find_vibe(conn: Connection, user_id: str) -> Vibe | None:
    row = await conn.fetchrow(
        "SELECT playfulness, revenue_focus, investor_perspective FROM public.vibe_configs WHERE user_id = $1", user_id
    )
    return Vibe(**dict(row)) if row else None


async def insert_default_vibe(conn: Connection, user_id: str) -> None:
    await conn.execute(
        """
        INSERT INTO public.vibe_configs (user_id) VALUES ($1)
        -- ON CONFLICT: the user's own first PUT may have come before the event.
        ON CONFLICT (user_id) DO NOTHING
        """,
        user_id,
    )


async def upsert_vibe(conn: Connection, user_id: str, vibe: Vibe) -> None:
    await conn.execute(
        """
        INSERT INTO public.vibe_configs (user_id, playfulness, revenue_focus, investor_perspective)
        VALUES ($1, $2, $3, $4)
        -- ON CONFLICT: of two PUTs at the same time the later one stays, whole.
        ON CONFLICT (user_id) DO UPDATE SET playfulness = EXCLUDED.playfulness,
            revenue_focus = EXCLUDED.revenue_focus, investor_perspective = EXCLUDED.investor_perspective,
            updated_at = now()
        """,
        user_id,
        vibe.playfulness,
        vibe.revenue_focus,
        vibe.investor_perspective,
    )


async def find_template(conn: Connection, user_id: str, template_id: UUID) -> Template | None:
    row = await conn.fetchrow(
        """
        SELECT id, name, agent_type, instructions, created_at FROM public.user_template_customizations
        WHERE id = $1 AND user_id = $2
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
        SELECT id, name, agent_type, instructions, created_at FROM public.user_template_customizations
        WHERE user_id = $1 AND ($2::timestamptz IS NULL OR (created_at, id) < ($2, $3::uuid))
        ORDER BY created_at DESC, id DESC
        LIMIT $4
        """,
        user_id,
        *(before or (None, None)),
        limit,
    )
    return [Template(**dict(row)) for row in rows]


async def insert_template(
    conn: Connection, *, template_id: UUID, user_id: str, name: str, agent_type: str, instructions: str
) -> Template | None:
    """Return None if the id is taken already: a repetition of the same request, or somebody else's row."""
    row = await conn.fetchrow(
        """
        INSERT INTO public.user_template_customizations (id, user_id, name, agent_type, instructions)
        VALUES ($1, $2, $3, $4, $5)
        -- ON CONFLICT: a retried request chose the same id and finds its own row.
        ON CONFLICT (id) DO NOTHING
        RETURNING id, name, agent_type, instructions, created_at
        """,
        template_id,
        user_id,
        name,
        agent_type,
        instructions,
    )
    return Template(**dict(row)) if row else None


async def update_template(
    conn: Connection, template_id: UUID, *, user_id: str, name: str, instructions: str
) -> Template | None:
    row = await conn.fetchrow(
        """
        UPDATE public.user_template_customizations SET name = $3, instructions = $4, updated_at = now()
        WHERE id = $1 AND user_id = $2
        RETURNING id, name, agent_type, instructions, created_at
        """,
        template_id,
        user_id,
        name,
        instructions,
    )
    return Template(**dict(row)) if row else None


async def delete_template(conn: Connection, template_id: UUID, *, user_id: str) -> bool:
    deleted = await conn.fetchval(
        "DELETE FROM public.user_template_customizations WHERE id = $1 AND user_id = $2 RETURNING true",
        template_id,
        user_id,
    )
    return deleted is not None


async def delete_all_of(conn: Connection, user_id: str) -> None:
    await conn.execute("DELETE FROM public.user_template_customizations WHERE user_id = $1", user_id)
    await conn.execute("DELETE FROM public.vibe_configs WHERE user_id = $1", user_id)
