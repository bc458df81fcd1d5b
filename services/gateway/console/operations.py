"""Acts of the console on what the gateway owns: one transaction each, the audit row in it."""

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from libs.common.database import Connection
from libs.common.errors import NotFound
from services.gateway.accounts import operations as accounts
from services.gateway.admin.queries import insert_audit
from services.gateway.admin_users.domain import OwnRights
from services.gateway.console import queries


async def delete_user(conn: Connection, *, actor: UUID, user_id: UUID, request_id: str) -> None:
    """Delete an account with everything it holds. Nobody deletes their own from here. Raises NotFound, OwnRights."""
    if actor == user_id:
        raise OwnRights("Delete your own account as its user, not from the console.")
    before = await queries.find_user(conn, user_id)
    if before is None:
        raise NotFound("There is no such user.")
    await accounts.delete_account(conn, user_id)
    await insert_audit(
        conn,
        actor=str(actor),
        action="user_deleted",
        subject=str(user_id),
        before={"tier": before["subscription_tier"], "status": before["subscription_status"]},
        request_id=request_id,
    )


async def note(
    conn: Connection,
    *,
    actor: UUID,
    action: str,
    subject: str,
    after: Mapping[str, Any] | None = None,
    request_id: str | None = None,
) -> None:
    """Write down what another service was asked to do, and did."""
    await insert_audit(conn, actor=str(actor), action=action, subject=subject, after=after, request_id=request_id)
