"""All SQL on the one row agents keeps per user."""

from collections.abc import Collection

from libs.common.database import Connection, Record
from services.agents.prompts.domain import NEUTRAL, Vibe


async def hold_user(conn: Connection, user_id: str) -> bool:
    """Make sure the user has a row and hold it against erasure until commit; return False if the user is erased."""
    return bool(await hold_users(conn, [user_id]))


async def hold_users(conn: Connection, user_ids: Collection[str]) -> dict[str, Vibe]:
    """The same for many; return those who are not erased, each with their sliders."""
    rows = await _hold_rows(conn, user_ids)
    missing = sorted({*user_ids} - {row["user_id"] for row in rows})
    if missing:
        await conn.execute(
            """
            INSERT INTO agents.entitlements (user_id) SELECT user_id FROM unnest($1::text[]) AS u(user_id)
            -- ON CONFLICT: two first events of one user at the same time make one row.
            ON CONFLICT (user_id) DO NOTHING
            """,
            missing,
        )
        rows += await _hold_rows(conn, missing)
    return {
        row["user_id"]: Vibe(
            playfulness=row["playfulness"],
            revenue_focus=row["revenue_focus"],
            investor_perspective=row["investor_perspective"],
        )
        for row in rows
        if row["is_there"]
    }


async def _hold_rows(conn: Connection, user_ids: Collection[str]) -> list[Record]:
    return await conn.fetch(
        """
        SELECT e.user_id, e.erased_at IS NULL AS is_there, coalesce(v.playfulness, $2) AS playfulness,
            coalesce(v.revenue_focus, $2) AS revenue_focus, coalesce(v.investor_perspective, $2) AS investor_perspective
        FROM agents.entitlements e LEFT JOIN public.vibe_configs v USING (user_id)
        WHERE e.user_id = ANY($1)
        ORDER BY e.user_id
        -- FOR KEY SHARE: an erasure waits for us and then finds our rows, or we wait for it and find the tombstone.
        -- Leasing and other acceptances of the same user are not held up.
        FOR KEY SHARE OF e
        """,
        list(user_ids),
        NEUTRAL,
    )


async def upsert_tier(conn: Connection, user_id: str, *, tier: str, version: int) -> None:
    """Apply a newer version; older ones and repetitions change nothing."""
    await conn.execute(
        """
        INSERT INTO agents.entitlements (user_id, tier, version) VALUES ($1, $2, $3)
        -- ON CONFLICT: events may overtake each other; the higher version wins, whatever the order.
        ON CONFLICT (user_id) DO UPDATE SET tier = EXCLUDED.tier, version = EXCLUDED.version
        WHERE entitlements.version < EXCLUDED.version AND entitlements.erased_at IS NULL
        """,
        user_id,
        tier,
        version,
    )


async def find_tier(conn: Connection, user_id: str) -> str | None:
    return await conn.fetchval("SELECT tier FROM agents.entitlements WHERE user_id = $1", user_id)


async def mark_erased(conn: Connection, user_id: str) -> None:
    await conn.execute(
        """
        INSERT INTO agents.entitlements (user_id, erased_at) VALUES ($1, now())
        -- ON CONFLICT: a first event of the user at the same time makes the row, and the lock below waits for it.
        ON CONFLICT (user_id) DO NOTHING
        """,
        user_id,
    )
    await conn.fetchrow(
        """
        SELECT FROM agents.entitlements WHERE user_id = $1
        -- FOR UPDATE is what KEY SHARE waits for: acceptances under way end first, later ones see the tombstone.
        FOR UPDATE
        """,
        user_id,
    )
    await conn.execute(
        """
        UPDATE agents.entitlements
        SET erased_at = coalesce(erased_at, now()), tier = 'free', last_leased_at = '-infinity'
        WHERE user_id = $1
        """,
        user_id,
    )
