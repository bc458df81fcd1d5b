"""All SQL on prompt atoms as admins curate them."""

from libs.common.database import Connection, Record
from services.agents.atoms.domain import AtomText, CuratedAtom


async def list_curated(conn: Connection) -> list[CuratedAtom]:
    rows = await conn.fetch(
        """
        SELECT key, category, title, body, tags, is_default, position, version, weight, target_roles, verticals,
            incompatible_with, is_active, approvals, rejections, changed_at, changed_by
        FROM public.prompt_atoms ORDER BY category, position, key
        """
    )
    return [_curated(row) for row in rows]


async def lock_atom(conn: Connection, key: str) -> CuratedAtom | None:
    row = await conn.fetchrow(
        """
        SELECT key, category, title, body, tags, is_default, position, version, weight, target_roles, verticals,
            incompatible_with, is_active, approvals, rejections, changed_at, changed_by
        FROM public.prompt_atoms WHERE key = $1
        -- FOR UPDATE: of two admins the second one finds the first one's version, and a verdict waits for both.
        FOR UPDATE
        """,
        key,
    )
    return _curated(row) if row else None


async def keep_version(conn: Connection, key: str) -> None:
    """Put the present version on record, with what users thought of it."""
    await conn.execute(
        """
        INSERT INTO agents.prompt_atom_versions (key, version, category, title, body, approvals, rejections)
        SELECT key, version, category, title, body, approvals, rejections FROM public.prompt_atoms WHERE key = $1
        -- ON CONFLICT: the lock on the atom lets one writer through at a time; this is a repetition of its own.
        ON CONFLICT (key, version) DO NOTHING
        """,
        key,
    )


async def clear_default(conn: Connection, category: str, *, but: str) -> None:
    """A category has one default: whoever was it before is so no more."""
    await conn.execute(
        "UPDATE public.prompt_atoms SET is_default = false WHERE category = $1 AND is_default AND key <> $2",
        category,
        but,
    )


async def insert_atom(conn: Connection, text: AtomText, *, changed_by: str) -> bool:
    """False if the key is taken."""
    inserted = await conn.fetchval(
        """
        INSERT INTO public.prompt_atoms (key, category, title, body, tags, is_default, position, weight, target_roles,
            verticals, incompatible_with, is_active, changed_by)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        -- ON CONFLICT: two admins write the same new key; the second one changes what the first one made.
        ON CONFLICT (key) DO NOTHING
        RETURNING true
        """,
        *_values(text),
        changed_by,
    )
    return inserted is not None


async def update_atom(conn: Connection, text: AtomText, *, is_new_version: bool, changed_by: str) -> None:
    await conn.execute(
        """
        UPDATE public.prompt_atoms
        SET category = $2, title = $3, body = $4, tags = $5, is_default = $6, position = $7, weight = $8,
            target_roles = $9, verticals = $10, incompatible_with = $11, is_active = $12, changed_by = $13,
            changed_at = now(), version = version + $14::boolean::integer,
            approvals = CASE WHEN $14 THEN 0 ELSE approvals END,
            rejections = CASE WHEN $14 THEN 0 ELSE rejections END
        WHERE key = $1
        """,
        *_values(text),
        changed_by,
        is_new_version,
    )


def _values(text: AtomText) -> tuple[object, ...]:
    return (
        text.key,
        text.category,
        text.title,
        text.body,
        sorted(text.tags),
        text.is_default,
        text.position,
        text.weight,
        sorted(text.target_roles),
        sorted(text.verticals),
        sorted(text.incompatible_with),
        text.is_active,
    )


def _curated(row: Record) -> CuratedAtom:
    text = AtomText(
        key=row["key"],
        category=row["category"],
        title=row["title"],
        body=row["body"],
        tags=frozenset(row["tags"]),
        is_default=row["is_default"],
        position=row["position"],
        weight=row["weight"],
        target_roles=frozenset(row["target_roles"]),
        verticals=frozenset(row["verticals"]),
        incompatible_with=frozenset(row["incompatible_with"]),
        is_active=row["is_active"],
    )
    return CuratedAtom(
        text=text,
        version=row["version"],
        approvals=row["approvals"],
        rejections=row["rejections"],
        changed_at=row["changed_at"],
        changed_by=row["changed_by"],
    )
