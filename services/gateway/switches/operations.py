"""Throwing a switch: one transaction, the audit row in it."""

from typing import Any
from uuid import UUID

from libs.common.database import Connection
from services.gateway.admin.queries import insert_audit
from services.gateway.switches import queries
from services.gateway.switches.domain import MAINTENANCE


async def set_maintenance(
    conn: Connection,
    *,
    actor: UUID,
    is_on: bool,
    route_group: str | None,
    expires_in_s: int | None,
    reason: str,
    request_id: str,
) -> dict[str, Any]:
    """Close or open the whole house, or one route group; return what was set. An expiry only belongs to closing."""
    name = f"{MAINTENANCE}:{route_group}" if route_group else MAINTENANCE
    expires_in_s = expires_in_s if is_on else None
    state = {"name": name, "is_on": is_on, "expires_in_s": expires_in_s, "reason": reason}
    before = await queries.lock_switch(conn, name)
    await queries.upsert_switch(
        conn, name=name, is_on=is_on, reason=reason, actor=str(actor), expires_in_s=expires_in_s
    )
    await insert_audit(
        conn, actor=str(actor), action="maintenance", subject=name, before=before, after=state, request_id=request_id
    )
    return state
