"""Writes of sign-in: one transaction each, handed in; hashing happens before, signing after."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, assert_never
from uuid import UUID

from libs.common.database import Connection
from libs.common.ids import new_id
from services.gateway.admin.queries import insert_audit
from services.gateway.auth import queries
from services.gateway.auth.domain import (
    AuthError,
    RefreshVerdict,
    Session,
    User,
    judge_refresh,
    read_refresh_token,
    validation_failed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    user: User
    session: Session


async def create_user(
    conn: Connection,
    *,
    email: str,
    password_hash: str | None,
    is_confirmed: bool,
    user_metadata: Mapping[str, Any],
    app_metadata: Mapping[str, Any] | None = None,
    user_id: UUID | None = None,
) -> User:
    """Create an account with its e-mail identity; raises AuthError email_exists. The profile comes by trigger."""
    user_id = user_id or new_id()
    # The caller's app metadata never decides the provider, and a user's own metadata never decides anything.
    metadata = {**(app_metadata or {}), "provider": "email", "providers": ["email"]}
    if is_confirmed:
        user_metadata = {**user_metadata, "email_verified": True}
    await queries.insert_user(
        conn,
        user_id=user_id,
        email=email,
        password_hash=password_hash,
        is_confirmed=is_confirmed,
        user_metadata=user_metadata,
        app_metadata=metadata,
    )
    await queries.insert_email_identity(
        conn, user_id=user_id, email=email, is_confirmed=is_confirmed, user_metadata=user_metadata
    )
    return await get_user(conn, user_id)


async def create_anonymous(conn: Connection, *, user_metadata: Mapping[str, Any]) -> User:
    """An account of nobody in particular: no address, no identity, until it is given one."""
    user_id = new_id()
    await queries.insert_user(
        conn,
        user_id=user_id,
        email=None,
        password_hash=None,
        is_confirmed=False,
        user_metadata=user_metadata,
        app_metadata={},
        is_anonymous=True,
    )
    return await get_user(conn, user_id)


async def get_user(conn: Connection, user_id: UUID) -> User:
    user = await queries.find_user(conn, user_id)
    if user is None:
        raise AuthError(403, "user_not_found", "User from sub claim in JWT does not exist")
    return user


async def start_session(conn: Connection, *, user_id: UUID, method: str) -> SignedIn:
    await queries.mark_signed_in(conn, user_id)
    session = await queries.insert_session(conn, user_id=user_id, refresh_key=secrets.token_bytes(32), method=method)
    return SignedIn(user=await get_user(conn, user_id), session=session)


async def refresh_session(conn: Connection, token: str, *, reuse_interval: timedelta) -> SignedIn | None:
    """Exchange a refresh token. None means reuse: the session was ended, and the caller must refuse after committing.

    Raises AuthError for tokens that are malformed, unknown, or whose user is banned; nothing is changed then.
    """
    presented = read_refresh_token(token)
    if presented is None:
        raise validation_failed("Invalid Refresh Token: Malformed")
    found = await queries.lock_session(conn, presented.session_id)
    if found is None or not presented.is_genuine(found[0]):
        raise AuthError(400, "refresh_token_not_found", "Invalid Refresh Token: Refresh Token Not Found")
    session, now = found
    user = await get_user(conn, session.user_id)
    if user.is_banned(now):
        raise AuthError(400, "user_banned", "User is banned")
    verdict = judge_refresh(
        active=session.refresh_counter,
        presented=presented.counter,
        refreshed_at=session.refreshed_at,
        now=now,
        reuse_interval=reuse_interval,
    )
    match verdict:
        case RefreshVerdict.ROTATE:
            await queries.advance_session(conn, session.id)
            return SignedIn(user=user, session=replace(session, refresh_counter=session.refresh_counter + 1))
        case RefreshVerdict.RETURN_ACTIVE:
            return SignedIn(user=user, session=session)
        case RefreshVerdict.REUSED:
            await queries.delete_sessions(conn, user_id=session.user_id, session_id=session.id, scope="local")
            await insert_audit(
                conn,
                actor="gateway",
                action="refresh_token_reused",
                subject=str(session.user_id),
                after={"session_id": str(session.id), "is_ended": True},
            )
            return None
        case _:
            assert_never(verdict)


async def change_user(
    conn: Connection,
    *,
    user_id: UUID,
    session_id: UUID | None,
    password_hash: str | None,
    user_metadata: Mapping[str, Any],
) -> User:
    """Apply a user's own change; a new password ends all other sessions."""
    await queries.update_user(conn, user_id=user_id, password_hash=password_hash, user_metadata=user_metadata)
    if password_hash is not None:
        await queries.delete_sessions(conn, user_id=user_id, session_id=session_id, scope="others")
    return await get_user(conn, user_id)
