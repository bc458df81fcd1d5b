"""HTTP of sign-in, mounted at /auth/v1, in the shapes `@supabase/auth-js` speaks."""

import re
from datetime import timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from libs.common.database import Connection, Database
from libs.common.http import create_app
from services.gateway.auth import operations, queries
from services.gateway.auth.domain import (
    AuthError,
    User,
    check_password,
    normalise_email,
    refresh_token_of,
    validation_failed,
)
from services.gateway.auth.errors import install_error_handlers
from services.gateway.auth.operations import SignedIn
from services.gateway.auth.passwords import Passwords
from services.gateway.auth.tokens import AccessTokens, ApiKeys
from services.gateway.domain import Identity

_BEARER = re.compile(r"bearer (\S+)", re.IGNORECASE)
PUBLIC_PATHS = frozenset({"/.well-known/jwks.json"})
MAX_PER_PAGE = 1000


class AuthInput(BaseModel):
    """A body of this contract: unknown fields are ignored, and an explicit null counts as absent."""

    model_config = ConfigDict(extra="ignore")


class Credentials(AuthInput):
    email: str | None = None
    password: str | None = None
    data: dict[str, Any] | None = None


class UserChange(AuthInput):
    password: str | None = None
    data: dict[str, Any] | None = None
    app_metadata: dict[str, Any] | None = None


class AdminUser(AuthInput):
    email: str | None = None
    password: str | None = None
    email_confirm: bool | None = None
    user_metadata: dict[str, Any] | None = None
    app_metadata: dict[str, Any] | None = None


class TokenBody(AuthInput):
    email: str | None = None
    password: str | None = None
    refresh_token: str | None = Field(default=None, max_length=512)


class AuthRoutes:
    """The routes and what they need. Hashing happens before a transaction opens, signing after it has committed."""

    def __init__(
        self,
        *,
        database: Database,
        passwords: Passwords,
        tokens: AccessTokens,
        keys: ApiKeys,
        autoconfirm: bool,
        reuse_interval: timedelta,
    ) -> None:
        self._database = database
        self._passwords = passwords
        self._tokens = tokens
        self._keys = keys
        self._autoconfirm = autoconfirm
        self._reuse_interval = reuse_interval

    def app(self, *, version: str) -> FastAPI:
        app = create_app(title="Sign-in", version=version)
        install_error_handlers(app)
        app.include_router(self.router())
        return app

    def router(self) -> APIRouter:
        router = APIRouter(dependencies=[Depends(self._require_api_key)])
        router.add_api_route("/health", self.health, methods=["GET"])
        router.add_api_route("/settings", self.settings, methods=["GET"])
        router.add_api_route("/.well-known/jwks.json", self.jwks, methods=["GET"])
        router.add_api_route("/signup", self.sign_up, methods=["POST"])
        router.add_api_route("/token", self.token, methods=["POST"])
        router.add_api_route("/user", self.read_user, methods=["GET"])
        router.add_api_route("/user", self.change_user, methods=["PUT"])
        router.add_api_route("/logout", self.log_out, methods=["POST"], status_code=204)
        router.add_api_route("/admin/users", self.admin_list, methods=["GET"])
        router.add_api_route("/admin/users", self.admin_create, methods=["POST"])
        router.add_api_route("/admin/users/{user_id}", self.admin_read, methods=["GET"])
        router.add_api_route("/admin/users/{user_id}", self.admin_delete, methods=["DELETE"])
        return router

    async def _require_api_key(self, request: Request) -> None:
        if request.scope["route"].path in PUBLIC_PATHS:
            return
        key = request.headers.get("apikey")
        if not key:
            raise AuthError(401, "no_authorization", "No API key found in request")
        if self._keys.role_of(key) is None:
            raise AuthError(401, "no_authorization", "Invalid API key")

    # What anyone may ask ---------------------------------------------------------------------------------------------

    async def health(self) -> dict[str, str]:
        return {"version": "v2", "name": "GoTrue", "description": "Venture Companion sign-in, Supabase Auth compatible"}

    async def settings(self) -> dict[str, Any]:
        return {
            "external": {"email": True, "phone": False, "anonymous_users": False},
            "disable_signup": False,
            "mailer_autoconfirm": self._autoconfirm,
            "phone_autoconfirm": False,
            "sms_provider": "",
            "saml_enabled": False,
        }

    async def jwks(self, response: Response) -> dict[str, Any]:
        response.headers["Cache-Control"] = "public, max-age=600"
        return self._tokens.jwks()

    # Signing up, in and out ------------------------------------------------------------------------------------------

    async def sign_up(self, body: Credentials) -> dict[str, Any]:
        if body.email is None:
            raise AuthError(422, "anonymous_provider_disabled", "Anonymous sign-ins are disabled")
        if not body.password:
            raise validation_failed("Signup requires a valid password")
        email = normalise_email(body.email)
        check_password(body.password)
        password_hash = await self._passwords.hash(body.password)
        try:
            async with self._database.transaction() as conn:
                user = await operations.create_user(
                    conn,
                    email=email,
                    password_hash=password_hash,
                    is_confirmed=self._autoconfirm,
                    user_metadata=body.data or {},
                )
                if not self._autoconfirm:
                    return user.to_json()
                signed_in = await operations.start_session(conn, user_id=user.id, method="password")
        except AuthError as error:
            if error.code == "email_exists":
                raise AuthError(422, "user_already_exists", "User already registered") from None
            raise
        return self._session(signed_in)

    async def token(self, body: TokenBody, grant_type: str = "") -> dict[str, Any]:
        if grant_type == "password":
            return await self._grant_password(body)
        if grant_type == "refresh_token":
            return await self._grant_refresh(body)
        raise AuthError(400, "invalid_credentials", "unsupported_grant_type")

    async def _grant_password(self, body: TokenBody) -> dict[str, Any]:
        if not body.email or not body.password:
            raise validation_failed("missing email or password")
        async with self._database.transaction() as conn:
            found = await queries.find_credentials(conn, body.email.strip().lower())
        user_id, stored = found if found is not None else (None, None)
        # Unknown address, no password and wrong password take the same time and get the same answer.
        matches = await self._passwords.matches(body.password[:1024], stored)
        if user_id is None or not matches:
            raise AuthError(400, "invalid_credentials", "Invalid login credentials")
        async with self._database.transaction() as conn:
            signed_in = await operations.start_session(conn, user_id=user_id, method="password")
            now = await conn.fetchval("SELECT now()")
            if signed_in.user.is_banned(now):
                raise AuthError(400, "user_banned", "User is banned")
            if signed_in.user.email_confirmed_at is None:
                raise AuthError(400, "email_not_confirmed", "Email not confirmed")
        return self._session(signed_in)

    async def _grant_refresh(self, body: TokenBody) -> dict[str, Any]:
        if not body.refresh_token:
            raise validation_failed("refresh_token required")
        async with self._database.transaction() as conn:
            signed_in = await operations.refresh_session(conn, body.refresh_token, reuse_interval=self._reuse_interval)
        if signed_in is None:  # the family's end is committed; only now may the refusal be told
            raise AuthError(400, "refresh_token_already_used", "Invalid Refresh Token: Already Used")
        return self._session(signed_in)

    async def log_out(self, request: Request, scope: str = "global") -> Response:
        if scope not in {"", "global", "local", "others"}:
            raise validation_failed(f"Unsupported logout scope {scope[:20]!r}")
        identity = await self._authenticate(request)
        async with self._database.transaction() as conn:
            await queries.delete_sessions(
                conn, user_id=identity.user_id, session_id=identity.session_id, scope=scope or "global"
            )
        return Response(status_code=204)

    # The user's own account ------------------------------------------------------------------------------------------

    async def read_user(self, request: Request) -> dict[str, Any]:
        identity = await self._authenticate(request)
        async with self._database.transaction() as conn:
            return (await operations.get_user(conn, identity.user_id)).to_json()

    async def change_user(self, request: Request, body: UserChange) -> dict[str, Any]:
        identity = await self._authenticate(request)
        if body.app_metadata is not None:
            raise AuthError(403, "not_admin", "Updating app_metadata requires admin privileges")
        password_hash = None
        if body.password is not None:
            check_password(body.password)
            password_hash = await self._passwords.hash(body.password)
        async with self._database.transaction() as conn:
            user = await operations.change_user(
                conn,
                user_id=identity.user_id,
                session_id=identity.session_id,
                password_hash=password_hash,
                user_metadata=body.data or {},
            )
        return user.to_json()

    async def _authenticate(self, request: Request) -> Identity:
        """The user of the bearer token, whose session still exists: signing out takes effect here at once."""
        identity = self._tokens.verify(_bearer(request))
        async with self._database.transaction() as conn:
            if identity.session_id is None or not await queries.session_exists(conn, identity.session_id):
                raise AuthError(403, "session_not_found", "Session from session_id claim in JWT does not exist")
        return identity

    # What the service role may do ------------------------------------------------------------------------------------

    async def admin_list(
        self, request: Request, page: Annotated[str, Query()] = "", per_page: Annotated[str, Query()] = ""
    ) -> dict[str, Any]:
        self._require_service_role(request)
        number, size = _positive(page, default=1), min(_positive(per_page, default=50), MAX_PER_PAGE)
        async with self._database.transaction() as conn:
            ids, _total = await queries.list_users(conn, limit=size, offset=(number - 1) * size)
            users = [await operations.get_user(conn, user_id) for user_id in ids]
        return {"users": [user.to_json() for user in users], "aud": "authenticated"}

    async def admin_create(self, request: Request, body: AdminUser) -> dict[str, Any]:
        self._require_service_role(request)
        if not body.email:
            raise validation_failed("Cannot create a user without an email")
        email = normalise_email(body.email)
        password_hash = None
        if body.password:
            check_password(body.password)
            password_hash = await self._passwords.hash(body.password)
        async with self._database.transaction() as conn:
            user = await operations.create_user(
                conn,
                email=email,
                password_hash=password_hash,
                is_confirmed=bool(body.email_confirm),
                user_metadata=body.user_metadata or {},
                app_metadata=body.app_metadata or {},
            )
        return user.to_json()

    async def admin_read(self, request: Request, user_id: str) -> dict[str, Any]:
        self._require_service_role(request)
        async with self._database.transaction() as conn:
            return (await self._find(conn, user_id)).to_json()

    async def admin_delete(self, request: Request, user_id: str) -> dict[str, Any]:
        self._require_service_role(request)
        async with self._database.transaction() as conn:
            user = await self._find(conn, user_id)
            await queries.delete_user(conn, user.id)
        return {}

    def _require_service_role(self, request: Request) -> None:
        if not self._keys.is_service_role(_bearer(request)):
            raise AuthError(403, "not_admin", "User not allowed")

    async def _find(self, conn: Connection, user_id: str) -> User:
        try:
            user = await queries.find_user(conn, UUID(user_id))
        except ValueError:
            raise AuthError(404, "validation_failed", "user_id must be an UUID") from None
        if user is None:
            raise AuthError(404, "user_not_found", "User not found")
        return user

    def _session(self, signed_in: SignedIn) -> dict[str, Any]:
        token, expires_in, expires_at = self._tokens.sign(signed_in.user, signed_in.session)
        return {
            "access_token": token,
            "token_type": "bearer",
            "expires_in": expires_in,
            "expires_at": expires_at,
            "refresh_token": refresh_token_of(signed_in.session),
            "user": signed_in.user.to_json(),
        }


def _bearer(request: Request) -> str:
    match = _BEARER.fullmatch(request.headers.get("authorization", ""))
    if match is None:
        raise AuthError(401, "no_authorization", "This endpoint requires a valid Bearer token")
    return match[1]


def _positive(value: str, *, default: int) -> int:
    """auth-js sends page and per_page as empty strings when they are not set."""
    if not value:
        return default
    if not value.isdigit() or int(value) < 1:
        raise validation_failed("page and per_page are positive whole numbers")
    return min(int(value), 1_000_000)
