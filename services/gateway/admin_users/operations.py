"""Changes of users by admins: one transaction, the audit row in it."""

from typing import Any
from uuid import UUID

from libs.common.database import Connection
from libs.common.errors import NotFound
from services.gateway.admin.queries import insert_audit
from services.gateway.admin_users import queries
from services.gateway.admin_users.domain import OwnRights, UserPatch


async def change_user(
    conn: Connection, *, actor: UUID, user_id: UUID, patch: UserPatch, request_id: str
) -> dict[str, Any]:
    """Apply and audit; return the state afterwards. Nobody takes or gives themself rights. Raises NotFound."""
    if actor == user_id and (patch.admin is not None or patch.banned is not None):
        raise OwnRights("Ask another admin to change your own rights.")
    before = await queries.lock_user(conn, user_id)
    if before is None:
        raise NotFound("There is no such user.")
    if patch.tier is not None:
        await queries.set_tier(conn, user_id=user_id, tier=patch.tier)
    if patch.admin is not None:
        await queries.set_admin(conn, user_id=user_id, is_admin=patch.admin)
    if patch.banned is not None:
        await queries.set_banned(conn, user_id=user_id, is_banned=patch.banned)
    after = await queries.lock_user(conn, user_id) or {}
    await insert_audit(
        conn,
        actor=str(actor),
        action="user_changed",
        subject=str(user_id),
        before=before,
        after={**after, "reason": patch.reason},
        request_id=request_id,
    )
    return after
