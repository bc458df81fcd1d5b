"""What every route of sign-in shares: who is asking, and how a session is told."""

import re
from typing import Annotated, Any, Final, cast
from uuid import UUID

import structlog
from fastapi import Query, Request
from pydantic import BaseModel, ConfigDict, model_validator

from libs.common.database import Connection, Database
from libs.common.inputs import require_storable
from services.gateway.auth import operations, queries
from services.gateway.auth.attempts import Attempts
from services.gateway.auth.domain import AuthError, User, refresh_token_of
from services.gateway.auth.operations import SignedIn
from services.gateway.auth.passwords import Passwords
from services.gateway.auth.tokens import AccessTokens, ApiKeys
from services.gateway.domain import Identity

log = structlog.get_logger(__name__)

_BEARER: Final = re.compile(r"bearer (\S+)", re.IGNORECASE)

RedirectTo = Annotated[str, Query(alias="redirect_to")]


class AuthInput(BaseModel):
    """A body of this contract: unknown fields are ignored, and an explicit null counts as absent."""

    model_config = ConfigDict(extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        fields = cast("dict[str, Any]", require_storable(values))
        return {name: value for name, value in fields.items() if value is not None}


class PkceInput(AuthInput):
    code_challenge: str = ""
    code_challenge_method: str = ""


class Desk:
    """Authenticates requests and renders sessions. Hashing happens before a transaction opens, signing after it."""

    def __init__(
        self, *, database: Database, passwords: Passwords, attempts: Attempts, tokens: AccessTokens, keys: ApiKeys
    ) -> None:
        self.database = database
        self.passwords = passwords
        self._attempts = attempts
        self.tokens = tokens
        self.keys = keys

    async def authenticate(self, request: Request) -> tuple[Identity, User]:
        """The user of the bearer token, whose session still exists: signing out takes effect here at once."""
        identity = self.tokens.verify(bearer(request))
        async with self.database.transaction() as conn:
            user = await operations.get_user(conn, identity.user_id)
            if identity.session_id is None or not await queries.session_exists(conn, identity.session_id):
                raise AuthError(403, "session_not_found", "Session from session_id claim in JWT does not exist")
            if user.is_banned(await conn.fetchval("SELECT now()")):
                raise AuthError(403, "user_banned", "User is banned")
        return identity, user

    async def sign_in(self, email: str, password: str) -> SignedIn:
        """A new session for whoever knows the password.

        Raises AuthError, the same for each way of not knowing it, and RateLimited where an account is tried too often.
        """
        address = email.strip().lower()
        await self._attempts.take(address)
        async with self.database.transaction() as conn:
            found = await queries.find_credentials(conn, address)
        user_id, stored = found if found is not None else (None, None)
        # Unknown address, no password and wrong password take the same time and get the same answer.
        matches = await self.passwords.matches(password[:1024], stored)
        if user_id is None or not matches:
            log.warning("sign_in_refused", reason="wrong_credentials", user_id=user_id and str(user_id))
            raise AuthError(400, "invalid_credentials", "Invalid login credentials")
        async with self.database.transaction() as conn:
            signed_in = await operations.start_session(conn, user_id=user_id, method="password")
            if signed_in.user.is_banned(await conn.fetchval("SELECT now()")):
                log.warning("sign_in_refused", reason="banned", user_id=str(user_id))
                raise AuthError(400, "user_banned", "User is banned")
            if not signed_in.user.is_confirmed:
                log.warning("sign_in_refused", reason="not_confirmed", user_id=str(user_id))
                raise AuthError(400, "email_not_confirmed", "Email not confirmed")
        log.info("signed_in", user_id=str(user_id), session_id=str(signed_in.session.id))
        return signed_in

    def require_service_role(self, request: Request) -> None:
        """Admin rights come from the bearer's role. Raises AuthError not_admin."""
        if not self.keys.is_service_role(bearer(request)):
            raise AuthError(403, "not_admin", "User not allowed")

    async def find(self, conn: Connection, user_id: str) -> User:
        try:
            user = await queries.find_user(conn, UUID(user_id))
        except ValueError:
            raise AuthError(404, "validation_failed", "user_id must be an UUID") from None
        if user is None:
            raise AuthError(404, "user_not_found", "User not found")
        return user

    def session(self, signed_in: SignedIn) -> dict[str, Any]:
        token, expires_in, expires_at = self.tokens.sign(signed_in.user, signed_in.session)
        return {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": expires_in,
            "expires_at": expires_at,
            "refresh_token": refresh_token_of(signed_in.session),
            "user": signed_in.user.to_json(),
        }


def bearer(request: Request) -> str:
    match = _BEARER.fullmatch(request.headers.get("authorization", ""))
    if match is None:
        raise AuthError(401, "no_authorization", "This endpoint requires a valid Bearer token")
    return match[1]
