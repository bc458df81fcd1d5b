"""All SQL on what users thought of their runs, and the success rates it moves."""

from collections.abc import Sequence
from uuid import UUID

from libs.common.database import Connection


async def find_feedback(conn: Connection, run_id: UUID) -> tuple[str, str | None] | None:
    row = await conn.fetchrow("SELECT verdict, detail FROM agents.run_feedback WHERE run_id = $1", run_id)
    return (row["verdict"], row["detail"]) if row else None


async def lock_atoms_of(conn: Connection, run_id: UUID) -> list[str]:
    """The atoms of a finished run's prompt as `key@version`, the run locked."""
    atoms = await conn.fetchval(
        """
        SELECT atoms FROM public.agent_runs WHERE id = $1
        -- FOR UPDATE: of two verdicts at the same time the second one finds the first and takes it back.
        FOR UPDATE
        """,
        run_id,
    )
    return list(atoms or ())


async def upsert_feedback(conn: Connection, run_id: UUID, *, verdict: str, detail: str | None) -> None:
    await conn.execute(
        """
        INSERT INTO agents.run_feedback (run_id, user_id, agent_type, verdict, detail)
        SELECT id, user_id, agent_type, $2, $3 FROM public.agent_runs WHERE id = $1
        -- ON CONFLICT: a person may change their mind; the last verdict stands.
        ON CONFLICT (run_id) DO UPDATE SET verdict = EXCLUDED.verdict, detail = EXCLUDED.detail, given_at = now()
        """,
        run_id,
        verdict,
        detail,
    )


async def move_rates(conn: Connection, atoms: Sequence[str], *, approvals: int, rejections: int) -> None:
    """Add to the counts of these atoms; negative numbers take a verdict back. Versions of the past stay as they are."""
    await conn.execute(
        """
        WITH judged AS (
            SELECT key FROM public.prompt_atoms WHERE key || '@' || version = ANY($1)
            -- FOR UPDATE in one order: two verdicts that share atoms never wait for each other in a circle.
            ORDER BY key FOR UPDATE
        )
        UPDATE public.prompt_atoms a
        SET approvals = greatest(0, approvals + $2), rejections = greatest(0, rejections + $3)
        FROM judged WHERE a.key = judged.key
        """,
        list(atoms),
        approvals,
        rejections,
    )
