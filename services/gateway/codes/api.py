"""HTTP of recovery, magic links, verification and PKCE, in the shapes `@supabase/auth-js` speaks."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import Field

from libs.common.database import Connection
from services.gateway.auth import operations as accounts
from services.gateway.auth import queries as users
from services.gateway.auth.desk import Desk, PkceInput, RedirectTo
from services.gateway.auth.domain import AuthError, User, normalise_email, validation_failed
from services.gateway.codes import operations, queries
from services.gateway.codes.domain import (
    FIRST_HALF,
    Kind,
    Redeemed,
    Redirects,
    kinds_of,
    otp_expired,
    read_flow,
    with_fragment,
    with_query,
)
from services.gateway.codes.operations import Links, Mailing, Verified

Referer = Annotated[str, Header(alias="referer")]
_ERROR_OF_STATUS: Final = {
    400: "invalid_request",
    401: "unauthorized_client",
    403: "access_denied",
    500: "server_error",
    503: "temporarily_unavailable",
}
_FLOW_METHODS: Final = {"signup": "email/signup", "email": "email/signup"}


class MailInput(PkceInput):
    email: str = Field(default="", max_length=1000)
    phone: str = Field(default="", max_length=100)
    data: dict[str, Any] = Field(default_factory=dict)
    create_user: bool = True
    type: str = Field(default="", max_length=40)


class VerifyInput(PkceInput):
    type: str = Field(default="", max_length=40)
    token_hash: str = Field(default="", max_length=200)
    email: str = Field(default="", max_length=1000)
    phone: str = Field(default="", max_length=100)
    token: str = Field(default="", max_length=200)


@dataclass(frozen=True, slots=True, kw_only=True)
class MailPolicy:
    """Whether new accounts count as confirmed, and how long one waits between two mails of a kind."""

    autoconfirm: bool
    interval_s: int


class CodeRoutes:
    def __init__(self, *, desk: Desk, links: Links, redirects: Redirects, policy: MailPolicy) -> None:
        self._desk = desk
        self._links = links
        self._redirects = redirects
        self._policy = policy

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/recover", self.recover, methods=["POST"])
        router.add_api_route("/resend", self.resend, methods=["POST"])
        router.add_api_route("/otp", self.otp, methods=["POST"])
        router.add_api_route("/magiclink", self.otp, methods=["POST"])
        router.add_api_route("/verify", self.verify, methods=["POST"])
        router.add_api_route("/verify", self.follow_link, methods=["GET"], response_model=None)
        router.add_api_route("/reauthenticate", self.reauthenticate, methods=["GET"])
        return router

    # Asking for mail -------------------------------------------------------------------------------------------------

    async def recover(self, body: MailInput, redirect_to: RedirectTo = "", referer: Referer = "") -> dict[str, Any]:
        """Mail a recovery link; the same answer whether or not the address has an account."""
        if not body.email:
            raise validation_failed("Password recovery requires an email")
        email = normalise_email(body.email)
        mailing = self._mailing(body, "recovery", redirect_to, referer)
        async with self._desk.database.transaction() as conn:
            await self._require_slot(conn, email, Kind.RECOVERY)
            user = await self._find(conn, email)
            if user is not None:
                await self._mail(conn, user, Kind.RECOVERY, mailing)
        return {}

    async def otp(self, body: MailInput, redirect_to: RedirectTo = "", referer: Referer = "") -> dict[str, Any]:
        """Mail a link and a code to sign in with; for a new address an account is made unless told not to."""
        if body.phone:
            raise AuthError(400, "phone_provider_disabled", "Unsupported phone provider")
        if not body.email:
            raise validation_failed("One of email or phone must be set")
        email = normalise_email(body.email)
        flow = read_flow(body.code_challenge, body.code_challenge_method)
        async with self._desk.database.transaction() as conn:
            await self._require_slot(conn, email, Kind.RECOVERY)
            user = await self._find(conn, email)
            if user is None and not body.create_user:
                raise AuthError(422, "otp_disabled", "Signups not allowed for otp")
            if user is None:
                user = await operations.create_unconfirmed(conn, email=email, metadata=body.data)
            is_new = user.email_confirmed_at is None and not self._policy.autoconfirm
            kind, letter = (Kind.CONFIRMATION, "confirmation") if is_new else (Kind.RECOVERY, "magiclink")
            mailing = Mailing(
                letter=letter,
                link_type="signup" if is_new else "magiclink",
                redirect_to=self._redirects.choose(redirect_to, referer=referer),
                flow=flow,
                flow_method="email/signup" if is_new else "magiclink",
            )
            await self._mail(conn, user, kind, mailing)
        return {}

    async def resend(self, body: MailInput, redirect_to: RedirectTo = "", referer: Referer = "") -> dict[str, Any]:
        if body.type not in {"signup", "email_change"}:
            if body.type in {"sms", "phone_change"}:
                raise AuthError(400, "phone_provider_disabled", "Unsupported phone provider")
            raise validation_failed("Missing one of these types: signup, email_change, sms, phone_change")
        if not body.email:
            raise validation_failed("Type provided requires an email address")
        email = normalise_email(body.email)
        kind = Kind.CONFIRMATION if body.type == "signup" else Kind.EMAIL_CHANGE_NEW
        letter = "confirmation" if body.type == "signup" else "email_change_new"
        mailing = self._mailing(body, body.type, redirect_to, referer, letter=letter)
        async with self._desk.database.transaction() as conn:
            await self._require_slot(conn, email, kind)
            user = await self._find(conn, email)
            if user is not None and body.type == "signup" and not user.is_confirmed:
                await self._mail(conn, user, kind, mailing)
            if user is not None and body.type == "email_change" and user.email_change:
                await operations.start_email_change(
                    conn,
                    user=user,
                    email=user.email_change,
                    is_secure=not self._policy.autoconfirm,
                    mailing=mailing,
                    links=self._links,
                )
        return {}

    async def reauthenticate(self, request: Request) -> dict[str, Any]:
        """Mail the signed-in user a code to confirm a new password with."""
        _identity, user = await self._desk.authenticate(request)
        if user.email is None or user.email_confirmed_at is None:
            raise AuthError(422, "email_not_confirmed", "Please verify your email first.")
        async with self._desk.database.transaction() as conn:
            await self._require_slot(conn, user.email, Kind.REAUTHENTICATION)
            mailing = Mailing(letter="reauthentication", link_type="", redirect_to=self._redirects.site_url)
            await self._mail(conn, user, Kind.REAUTHENTICATION, mailing)
        return {}

    def _mailing(
        self, body: PkceInput, link_type: str, redirect_to: str, referer: str, *, letter: str | None = None
    ) -> Mailing:
        return Mailing(
            letter=letter or link_type,
            link_type=link_type,
            redirect_to=self._redirects.choose(redirect_to, referer=referer),
            flow=read_flow(body.code_challenge, body.code_challenge_method),
            flow_method=_FLOW_METHODS.get(link_type, link_type),
        )

    async def _require_slot(self, conn: Connection, email: str, kind: Kind) -> None:
        await operations.require_mail_slot(conn, email=email, kind=kind.value, interval_s=self._policy.interval_s)

    async def _find(self, conn: Connection, email: str) -> User | None:
        user_id = await users.find_user_id(conn, email)
        return await users.find_user(conn, user_id) if user_id is not None else None

    async def _mail(self, conn: Connection, user: User, kind: Kind, mailing: Mailing) -> None:
        if user.email:
            await operations.mail_code(conn, user=user, kind=kind, email=user.email, mailing=mailing, link=self._links)

    # Redeeming -------------------------------------------------------------------------------------------------------

    async def verify(self, body: VerifyInput) -> dict[str, Any]:
        """A session for a code or a link's token; for the first half of a change of address only a message."""
        kinds = [kind.value for kind in kinds_of(body.type)] if body.type else None
        if kinds is None:
            raise validation_failed("Verify requires a verification type")
        if body.token_hash and not (body.email or body.phone):
            async with self._desk.database.transaction() as conn:
                redeemed = await queries.take_by_token(conn, token=body.token_hash, kinds=kinds)
                return await self._finish(conn, redeemed)
        if body.token and body.email and not body.token_hash:
            return await self._verify_code(normalise_email(body.email), kinds, body.token)
        if body.phone:
            raise otp_expired()
        raise validation_failed("Only an email address or phone number and a token, or a token hash, can be verified")

    async def _verify_code(self, email: str, kinds: list[str], code: str) -> dict[str, Any]:
        async with self._desk.database.transaction() as conn:
            redeemed = await operations.redeem_code(conn, email=email, kinds=kinds, code=code)
            if redeemed is not None:
                return await self._finish(conn, redeemed)
        raise otp_expired()  # only now: the guess is counted and committed

    async def _finish(self, conn: Connection, redeemed: Redeemed | None) -> dict[str, Any]:
        if redeemed is None:
            raise otp_expired()
        verified = await operations.apply(conn, redeemed)
        if verified.is_first_half:
            return {"msg": FIRST_HALF, "code": "200"}
        return self._desk.session(await accounts.start_session(conn, user_id=verified.user.id, method="otp"))

    async def follow_link(
        self,
        token: Annotated[str, Query(max_length=200)] = "",
        link_type: Annotated[str, Query(alias="type", max_length=40)] = "",
        redirect_to: RedirectTo = "",
        referer: Referer = "",
    ) -> Response:
        """A click in a mail: always a redirect, with a session, a code or the refusal in it."""
        if not token or not link_type:
            raise validation_failed("Verify requires a token and a verification type")
        target = self._redirects.choose(redirect_to, referer=referer)
        try:
            location = await self._follow(token, link_type, target)
        except AuthError as error:
            location = _refused(target, error, is_pkce=token.startswith("pkce_"))
        return RedirectResponse(location, HTTPStatus.SEE_OTHER, headers={"Referrer-Policy": "no-referrer"})

    async def _follow(self, token: str, link_type: str, target: str) -> str:
        kinds = [kind.value for kind in kinds_of(link_type)]
        async with self._desk.database.transaction() as conn:
            redeemed = await queries.take_by_token(conn, token=token, kinds=kinds)
            if redeemed is None:
                raise otp_expired()
            verified = await operations.apply(conn, redeemed)
            if verified.is_first_half:
                return with_fragment(target, {"message": FIRST_HALF})
            if redeemed.flow_state_id is not None:
                return await _with_code(conn, redeemed.flow_state_id, target)
            return await self._with_session(conn, verified, link_type, target)

    async def _with_session(self, conn: Connection, verified: Verified, link_type: str, target: str) -> str:
        session = self._desk.session(await accounts.start_session(conn, user_id=verified.user.id, method="otp"))
        names = ("access_token", "expires_at", "expires_in", "refresh_token", "token_type")
        return with_fragment(target, {**{name: str(session[name]) for name in names}, "type": link_type})


async def _with_code(conn: Connection, flow_state_id: UUID, target: str) -> str:
    code = await queries.issue_auth_code(conn, flow_state_id)
    if code is None:
        raise AuthError(404, "flow_state_not_found", "invalid flow state, no valid flow state found")
    return with_query(target, {"code": str(code)})


def _refused(target: str, error: AuthError, *, is_pkce: bool) -> str:
    values = {
        "error": _ERROR_OF_STATUS.get(error.status, "invalid_request"),
        "error_code": error.code,
        "error_description": error.message,
    }
    return with_fragment(with_query(target, values) if is_pkce else target, values)
