"""All SQL on prompt atoms and vibe configurations."""

from libs.common.database import Connection
from services.agents.prompts.domain import Atom, Vibe


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


async def delete_all_of(conn: Connection, user_id: str) -> None:
    await conn.execute("DELETE FROM public.vibe_configs WHERE user_id = $1", user_id)
