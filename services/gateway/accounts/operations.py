"""Writes of accounts: one transaction each, handed in."""

from uuid import UUID

from libs.common.database import Connection
from services.gateway.accounts import queries
from services.gateway.accounts.domain import ProfileChange, ProfileNotFound


async def change_profile(conn: Connection, *, user_id: UUID, change: ProfileChange) -> dict[str, object]:
    """Apply the user's change as the user; return the profile as it is now. Raises ProfileNotFound."""
    changes = change.changes()
    if changes:
        await queries.update_profile(conn, user_id, changes)
    profile = await queries.find_profile(conn, user_id)
    if profile is None:
        raise ProfileNotFound("There is no profile for this account.")
    return profile


async def delete_account(conn: Connection, user_id: UUID) -> None:
    """Delete the account and everything the gateway holds of it. Deleting what is gone already is no error."""
    await queries.delete_user(conn, user_id)
