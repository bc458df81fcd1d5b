"""HTTP of signing up, in, on and out, mounted at /auth/v1, in the shapes `@supabase/auth-js` speaks."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import Field

from libs.common.clock import iso_micros
from libs.common.database import Connection
from libs.common.ids import new_id
from services.gateway.auth import operations, queries
from services.gateway.auth.desk import AuthInput, Desk, PkceInput, RedirectTo
from services.gateway.auth.domain import (
    AuthError,
    User,
    email_exists,
    normalise_email,
    validation_failed,
)
from services.gateway.codes import operations as codes
from services.gateway.codes import queries as code_queries
from services.gateway.codes.domain import Kind, Redirects, read_flow
from services.gateway.codes.operations import Links, Mailing
from services.gateway.domain import Identity
from services.gateway.mail import queries as mail

MAX_PASSWORD_INPUT: Final = 4096
_EXTERNAL_PROVIDERS: Final = tuple(
    """anonymous_users apple azure bitbucket discord facebook figma fly github gitlab google kakao keycloak linkedin
    linkedin_oidc notion slack slack_oidc snapchat spotify twitch twitter workos zoom email phone""".split()  # noqa: SIM905 - a list of so many words reads better so
)


class SignUp(PkceInput):
    email: str = Field(default="", max_length=1000)
    phone: str = Field(default="", max_length=100)
    password: str = Field(default="", max_length=MAX_PASSWORD_INPUT)
    data: dict[str, Any] = Field(default_factory=dict)


class UserChange(PkceInput):
    email: str = Field(default="", max_length=1000)
    phone: str = Field(default="", max_length=100)
    password: str | None = Field(default=None, max_length=MAX_PASSWORD_INPUT)
    current_password: str = Field(default="", max_length=MAX_PASSWORD_INPUT)
    nonce: str = Field(default="", max_length=40)
    data: dict[str, Any] = Field(default_factory=dict)
    app_metadata: dict[str, Any] | None = None


class TokenBody(AuthInput):
    email: str = Field(default="", max_length=1000)
    phone: str = Field(default="", max_length=100)
    password: str = Field(default="", max_length=MAX_PASSWORD_INPUT)
    refresh_token: str = Field(default="", max_length=512)
    auth_code: str = Field(default="", max_length=100)
    code_verifier: str = Field(default="", max_length=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInPolicy:
    autoconfirm: bool
    anonymous: bool
    reuse_interval: timedelta
    mail_interval_s: int


class AuthRoutes:
    def __init__(self, *, desk: Desk, links: Links, redirects: Redirects, policy: SignInPolicy) -> None:
        self._desk = desk
        self._database = desk.database
        self._links = links
        self._redirects = redirects
        self._policy = policy

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/health", self.health, methods=["GET"])
        router.add_api_route("/settings", self.settings, methods=["GET"])
        router.add_api_route("/.well-known/jwks.json", self.jwks, methods=["GET"])
        router.add_api_route("/authorize", self.authorize, methods=["GET"])
        router.add_api_route("/signup", self.sign_up, methods=["POST"])
        router.add_api_route("/token", self.token, methods=["POST"])
        router.add_api_route("/user", self.read_user, methods=["GET"])
        router.add_api_route("/user", self.change_user, methods=["PUT"])
        router.add_api_route("/logout", self.log_out, methods=["POST"], status_code=204)
        return router

    # What anyone may ask ---------------------------------------------------------------------------------------------

    async def health(self) -> dict[str, str]:
        return {"version": "v2", "name": "GoTrue", "description": "Venture Companion sign-in, Supabase Auth compatible"}

    async def settings(self) -> dict[str, Any]:
        enabled = {"email": True, "anonymous_users": self._policy.anonymous}
        return {
            "external": {name: enabled.get(name, False) for name in _EXTERNAL_PROVIDERS},
            "disable_signup": False,
            "mailer_autoconfirm": self._policy.autoconfirm,
            "phone_autoconfirm": False,
            "sms_provider": "",
            "saml_enabled": False,
            "saml_private_key_next_configured": False,
            "passkeys_enabled": False,
        }

    async def jwks(self, response: Response) -> dict[str, Any]:
        response.headers["Cache-Control"] = "public, max-age=600"
        return self._desk.tokens.jwks()

    async def authorize(self) -> None:
        raise validation_failed("Unsupported provider: provider is not enabled")

    # Signing up, in and out ------------------------------------------------------------------------------------------

    async def sign_up(self, request: Request, body: SignUp, redirect_to: RedirectTo = "") -> dict[str, Any]:
        if not body.email and not body.phone:
            return await self._sign_up_anonymously(body)
        if not body.password:
            raise validation_failed("Signup requires a valid password")
        if not body.email:
            raise AuthError(400, "phone_provider_disabled", "Phone signups are disabled")
        email = normalise_email(body.email)
        self._desk.passwords.require_good(body.password)
        flow = read_flow(body.code_challenge, body.code_challenge_method)
        password_hash = await self._desk.passwords.hash(body.password)
        if self._policy.autoconfirm:
            return await self._sign_up_confirmed(email, password_hash, body.data)
        redirect = self._redirects.choose(redirect_to, referer=request.headers.get("referer"))
        mailing = Mailing(
            letter="confirmation", link_type="signup", redirect_to=redirect, flow=flow, flow_method="email/signup"
        )
        async with self._database.transaction() as conn:
            return await self._sign_up_by_mail(conn, email, password_hash, body.data, mailing)

    async def _sign_up_anonymously(self, body: SignUp) -> dict[str, Any]:
        if not self._policy.anonymous:
            raise AuthError(422, "anonymous_provider_disabled", "Anonymous sign-ins are disabled")
        async with self._database.transaction() as conn:
            user = await operations.create_anonymous(conn, user_metadata=body.data)
            signed_in = await operations.start_session(conn, user_id=user.id, method="anonymous")
        return self._desk.session(signed_in)

    async def _sign_up_confirmed(self, email: str, password_hash: str, metadata: dict[str, Any]) -> dict[str, Any]:
        """An address that has an account, confirmed or not, is refused: its owner may be somebody else."""
        try:
            async with self._database.transaction() as conn:
                user = await operations.create_user(
                    conn, email=email, password_hash=password_hash, is_confirmed=True, user_metadata=metadata
                )
                signed_in = await operations.start_session(conn, user_id=user.id, method="password")
        except AuthError as error:
            if error.code == "email_exists":
                raise AuthError(422, "user_already_exists", "User already registered") from None
            raise
        return self._desk.session(signed_in)

    async def _sign_up_by_mail(
        self, conn: Connection, email: str, password_hash: str, metadata: dict[str, Any], mailing: Mailing
    ) -> dict[str, Any]:
        """The answer never tells whether the address was known; its owner's mailbox does."""
        await codes.require_mail_slot(
            conn, email=email, kind=Kind.CONFIRMATION.value, interval_s=self._policy.mail_interval_s
        )
        user_id = await queries.find_user_id(conn, email)
        user = await queries.find_user(conn, user_id) if user_id is not None else None
        if user is not None and user.is_confirmed:
            await mail.insert_mail(conn, address=email, letter="already_registered", content={})
            return await _obfuscated(conn, email, metadata)
        if user is None:
            user = await operations.create_user(
                conn, email=email, password_hash=password_hash, is_confirmed=False, user_metadata=metadata
            )
        await codes.mail_code(conn, user=user, kind=Kind.CONFIRMATION, email=email, mailing=mailing, link=self._links)
        return (await operations.get_user(conn, user.id)).to_json()

    async def token(self, body: TokenBody, grant_type: str = "") -> dict[str, Any]:
        if grant_type == "password":
            return await self._grant_password(body)
        if grant_type == "refresh_token":
            return await self._grant_refresh(body)
        if grant_type == "pkce":
            return await self._grant_code(body)
        raise AuthError(400, "invalid_credentials", "unsupported_grant_type")

    async def _grant_password(self, body: TokenBody) -> dict[str, Any]:
        if body.phone and not body.email:
            raise AuthError(422, "phone_provider_disabled", "Phone logins are disabled")
        if not body.email or not body.password:
            raise validation_failed("missing email or password")
        return self._desk.session(await self._desk.sign_in(body.email, body.password))

    async def _grant_refresh(self, body: TokenBody) -> dict[str, Any]:
        if not body.refresh_token:
            raise validation_failed("refresh_token required")
        async with self._database.transaction() as conn:
            signed_in = await operations.refresh_session(
                conn, body.refresh_token, reuse_interval=self._policy.reuse_interval
            )
        if signed_in is None:  # the family's end is committed; only now may the refusal be told
            raise AuthError(400, "refresh_token_already_used", "Invalid Refresh Token: Already Used")
        return self._desk.session(signed_in)

    async def _grant_code(self, body: TokenBody) -> dict[str, Any]:
        if not body.auth_code or not body.code_verifier:
            raise validation_failed("invalid request: both auth code and code verifier should be non-empty")
        try:
            auth_code = UUID(body.auth_code)
        except ValueError:
            raise AuthError(404, "flow_state_not_found", "invalid flow state, no valid flow state found") from None
        async with self._database.transaction() as conn:
            signed_in = await codes.exchange_flow(conn, auth_code=auth_code, verifier=body.code_verifier)
        return self._desk.session(signed_in)

    async def log_out(self, request: Request, scope: str = "global") -> Response:
        if scope not in {"", "global", "local", "others"}:
            raise validation_failed(f"Unsupported logout scope {scope[:20]!r}")
        identity, _user = await self._desk.authenticate(request)
        async with self._database.transaction() as conn:
            await queries.delete_sessions(
                conn, user_id=identity.user_id, session_id=identity.session_id, scope=scope or "global"
            )
        return Response(status_code=204)

    # The user's own account ------------------------------------------------------------------------------------------

    async def read_user(self, request: Request) -> dict[str, Any]:
        _identity, user = await self._desk.authenticate(request)
        return user.to_json()

    async def change_user(self, request: Request, body: UserChange, redirect_to: RedirectTo = "") -> dict[str, Any]:
        identity, user = await self._desk.authenticate(request)
        if body.app_metadata is not None:
            raise AuthError(403, "not_admin", "Updating app_metadata requires admin privileges")
        if body.phone and body.phone != user.phone:
            raise AuthError(422, "phone_provider_disabled", "Phone changes are disabled")
        password_hash = await self._new_password(identity, user, body) if body.password is not None else None
        mailing = Mailing(
            letter="email_change_new",
            link_type="email_change",
            redirect_to=self._redirects.choose(redirect_to, referer=request.headers.get("referer")),
            flow=read_flow(body.code_challenge, body.code_challenge_method),
            flow_method="email_change",
        )
        async with self._database.transaction() as conn:
            changed = await operations.change_user(
                conn,
                user_id=user.id,
                session_id=identity.session_id,
                password_hash=password_hash,
                user_metadata=body.data,
            )
            if password_hash is not None:
                await self._tell_of_new_password(conn, user)
            if body.email and normalise_email(body.email) != user.email:
                await self._change_email(conn, changed, normalise_email(body.email), mailing)
            return (await operations.get_user(conn, user.id)).to_json()

    async def _new_password(self, identity: Identity, user: User, body: UserChange) -> str:
        """The new password's hash, if the password may be changed to it. Raises AuthError."""
        password = body.password or ""
        if user.is_anonymous and not body.email:
            raise AuthError(
                422, "validation_failed", "Updating password of an anonymous user without an email is not allowed"
            )
        self._desk.passwords.require_good(password)
        async with self._database.transaction() as conn:
            found = await queries.find_credentials(conn, user.email) if user.email else None
        stored = found[1] if found is not None else None
        if body.current_password and not await self._desk.passwords.matches(body.current_password, stored):
            raise AuthError(400, "current_password_invalid", "The current password is not correct.")
        if body.nonce:
            await self._require_nonce(identity, body.nonce)
        if stored is not None and await self._desk.passwords.matches(password, stored):
            raise AuthError(422, "same_password", "New password should be different from the old password.")
        return await self._desk.passwords.hash(password)

    async def _require_nonce(self, identity: Identity, nonce: str) -> None:
        async with self._database.transaction() as conn:
            is_good = await codes.redeem_nonce(conn, user_id=identity.user_id, code=nonce)
        if not is_good:
            raise AuthError(422, "reauthentication_not_valid", "Nonce has expired or is invalid")

    async def _tell_of_new_password(self, conn: Connection, user: User) -> None:
        """Codes mailed before the change are void, and the owner hears of it."""
        await code_queries.delete_codes(conn, user.id)
        if user.email and user.email_confirmed_at is not None:
            await mail.insert_mail(conn, address=user.email, letter="password_changed", content={})

    async def _change_email(self, conn: Connection, user: User, email: str, mailing: Mailing) -> None:
        if user.is_anonymous and self._policy.autoconfirm:
            await codes.change_email_now(conn, user, email)
            return
        if await queries.find_user_id(conn, email) is not None:
            raise email_exists()
        await codes.require_mail_slot(
            conn, email=email, kind=Kind.EMAIL_CHANGE_NEW.value, interval_s=self._policy.mail_interval_s
        )
        await codes.start_email_change(
            conn, user=user, email=email, is_secure=not self._policy.autoconfirm, mailing=mailing, links=self._links
        )


async def _obfuscated(conn: Connection, email: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """What signing up with a taken address is told: a user like any other, who does not exist."""
    now = iso_micros(await conn.fetchval("SELECT now()"))
    return {
        "id": str(new_id()),
        "aud": "authenticated",
        "role": "",
        "email": email,
        "phone": "",
        "confirmation_sent_at": now,
        "app_metadata": {"provider": "email", "providers": ["email"]},
        "user_metadata": metadata,
        "identities": [],
        "created_at": now,
        "updated_at": now,
        "is_anonymous": False,
    }
