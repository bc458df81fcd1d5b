"""SQL of the switches."""

from typing import Any

from libs.common.database import Connection
from services.gateway.switches.domain import SwitchView


async def read_switches(conn: Connection) -> dict[str, SwitchView]:
    rows = await conn.fetch(
        """
        SELECT name, is_on, extract(epoch FROM expires_at - now())::float8 AS expires_in_s
        FROM gateway.switches WHERE expires_at IS NULL OR expires_at > now()
        """
    )
    return {row["name"]: SwitchView(is_on=row["is_on"], expires_in_s=row["expires_in_s"]) for row in rows}


async def lock_switch(conn: Connection, name: str) -> dict[str, Any] | None:
    """What is set now. FOR UPDATE: what is audited as before is what the change met."""
    row = await conn.fetchrow(
        """
        SELECT is_on, reason, set_by, set_at::text, expires_at::text
        FROM gateway.switches WHERE name = $1 FOR UPDATE
        """,
        name,
    )
    return dict(row) if row is not None else None


async def upsert_switch(
    conn: Connection, *, name: str, is_on: bool, reason: str, actor: str, expires_in_s: int | None
) -> None:
    await conn.execute(
        """
        INSERT INTO gateway.switches (name, is_on, reason, set_by, set_at, expires_at)
        VALUES ($1, $2, $3, $4, now(), now() + make_interval(secs => $5))
        ON CONFLICT (name) DO UPDATE  -- two operators at once: the later one's word stands, both are audited
        SET is_on = $2, reason = $3, set_by = $4, set_at = now(), expires_at = now() + make_interval(secs => $5)
        """,
        name,
        is_on,
        reason,
        actor,
        expires_in_s,
    )
