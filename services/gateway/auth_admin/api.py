"""HTTP of account administration under /auth/v1/admin, for bearers of the service role."""

from collections.abc import Mapping
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field

from libs.common.database import Connection
from services.gateway.auth import operations, queries
from services.gateway.auth.api import MAX_PASSWORD_INPUT
from services.gateway.auth.desk import AuthInput, Desk, RedirectTo
from services.gateway.auth.domain import (
    AuthError,
    User,
    email_exists,
    normalise_email,
    validation_failed,
)
from services.gateway.auth_admin.domain import LINK_TYPES, read_ban
from services.gateway.codes import operations as codes
from services.gateway.codes.domain import Kind, Redirects
from services.gateway.codes.operations import Links, Mailing
from services.gateway.factors import queries as factors

MAX_PER_PAGE: Final = 1000


class AdminUser(AuthInput):
    id: str = Field(default="", max_length=64)
    email: str = Field(default="", max_length=1000)
    phone: str = Field(default="", max_length=40)
    password: str = Field(default="", max_length=MAX_PASSWORD_INPUT)
    password_hash: str = Field(default="", max_length=512)
    email_confirm: bool = False
    phone_confirm: bool = False
    user_metadata: dict[str, Any] = Field(default_factory=dict)
    app_metadata: dict[str, Any] = Field(default_factory=dict)
    ban_duration: str = Field(default="", max_length=100)


class Deletion(AuthInput):
    should_soft_delete: bool = False


class Invitation(AuthInput):
    email: str = Field(default="", max_length=1000)
    data: dict[str, Any] = Field(default_factory=dict)


class LinkInput(Invitation):
    type: str = Field(default="", max_length=40)
    password: str = Field(default="", max_length=MAX_PASSWORD_INPUT)
    new_email: str = Field(default="", max_length=1000)


class AuthAdminRoutes:
    def __init__(self, *, desk: Desk, links: Links, redirects: Redirects) -> None:
        self._desk = desk
        self._database = desk.database
        self._links = links
        self._redirects = redirects

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/invite", self.invite, methods=["POST"])
        router.add_api_route("/admin/generate_link", self.generate_link, methods=["POST"])
        router.add_api_route("/admin/users", self.list, methods=["GET"])
        router.add_api_route("/admin/users", self.create, methods=["POST"])
        router.add_api_route("/admin/users/{user_id}", self.read, methods=["GET"])
        router.add_api_route("/admin/users/{user_id}", self.change, methods=["PUT"])
        router.add_api_route("/admin/users/{user_id}", self.delete, methods=["DELETE"])
        router.add_api_route("/admin/users/{user_id}/factors", self.list_factors, methods=["GET"])
        router.add_api_route("/admin/users/{user_id}/factors/{factor_id}", self.delete_factor, methods=["DELETE"])
        return router

    async def list(
        self,
        request: Request,
        response: Response,
        page: Annotated[str, Query()] = "",
        per_page: Annotated[str, Query()] = "",
        search: Annotated[str, Query(alias="filter", max_length=200)] = "",
    ) -> dict[str, Any]:
        self._desk.require_service_role(request)
        number, size = _positive(page, default=1), min(_positive(per_page, default=50), MAX_PER_PAGE)
        async with self._database.transaction() as conn:
            ids, total = await queries.list_users(conn, search=search.lower(), limit=size, offset=(number - 1) * size)
            found = [await queries.find_user(conn, user_id) for user_id in ids]
        response.headers["X-Total-Count"] = str(total)
        response.headers["Link"] = _page_links(number, size, total)
        users = [{**user.to_json(), "identities": None} for user in found if user is not None]
        return {"users": users, "aud": "authenticated"}

    async def create(self, request: Request, body: AdminUser) -> dict[str, Any]:
        self._desk.require_service_role(request)
        if not body.email:
            raise validation_failed("Cannot create a user without an email")
        email = normalise_email(body.email)
        ban_s = read_ban(body.ban_duration) if body.ban_duration else None
        password_hash = await self._hash(body)
        async with self._database.transaction() as conn:
            user = await operations.create_user(
                conn,
                email=email,
                password_hash=password_hash,
                is_confirmed=body.email_confirm,
                user_metadata=body.user_metadata,
                app_metadata=body.app_metadata,
                user_id=_uuid(body.id) if body.id else None,
            )
            await self._extras(conn, user.id, body, ban_s)
            return (await operations.get_user(conn, user.id)).to_json()

    async def read(self, request: Request, user_id: str) -> dict[str, Any]:
        self._desk.require_service_role(request)
        async with self._database.transaction() as conn:
            return (await self._desk.find(conn, user_id)).to_json()

    async def change(self, request: Request, user_id: str, body: AdminUser) -> dict[str, Any]:
        self._desk.require_service_role(request)
        email = normalise_email(body.email) if body.email else None
        ban_s = read_ban(body.ban_duration) if body.ban_duration else None
        password_hash = await self._hash(body)
        async with self._database.transaction() as conn:
            user = await self._desk.find(conn, user_id)
            if email is not None and email != user.email:
                await queries.set_email(conn, user_id=user.id, email=email)
            if body.email_confirm:
                await queries.mark_email_confirmed(conn, user.id)
            await queries.update_user(
                conn,
                user_id=user.id,
                password_hash=password_hash,
                user_metadata=body.user_metadata,
                app_metadata=body.app_metadata,
            )
            if password_hash is not None:
                await queries.delete_sessions(conn, user_id=user.id, session_id=None, scope="global")
            await self._extras(conn, user.id, body, ban_s)
            return (await operations.get_user(conn, user.id)).to_json()

    async def delete(self, request: Request, user_id: str, body: Deletion | None = None) -> dict[str, Any]:
        self._desk.require_service_role(request)
        async with self._database.transaction() as conn:
            user = await self._desk.find(conn, user_id)
            if body is not None and body.should_soft_delete:
                await queries.soft_delete_user(conn, user.id)
            else:
                await queries.delete_user(conn, user.id)
        return {}

    async def list_factors(self, request: Request, user_id: str) -> Any:
        self._desk.require_service_role(request)
        async with self._database.transaction() as conn:
            return [dict(factor) for factor in (await self._desk.find(conn, user_id)).factors]

    async def delete_factor(self, request: Request, user_id: str, factor_id: str) -> dict[str, Any]:
        self._desk.require_service_role(request)
        async with self._database.transaction() as conn:
            user = await self._desk.find(conn, user_id)
            for factor in user.factors:
                if factor["id"] == factor_id:
                    await factors.delete_factor(conn, user_id=user.id, factor_id=UUID(factor_id))
                    return dict(factor)
        raise AuthError(404, "mfa_factor_not_found", "Factor not found")

    async def _hash(self, body: AdminUser) -> str | None:
        if body.password_hash:
            if not body.password_hash.startswith("$argon2id$"):
                raise validation_failed("password_hash must be an argon2id hash in PHC form")
            return body.password_hash
        if not body.password:
            return None
        self._desk.passwords.require_good(body.password)
        return await self._desk.passwords.hash(body.password)

    async def _extras(self, conn: Connection, user_id: UUID, body: AdminUser, ban_s: float | None) -> None:
        if body.ban_duration:
            await queries.set_ban(conn, user_id=user_id, duration_s=ban_s)
        if body.phone:
            await queries.set_phone(
                conn, user_id=user_id, phone=body.phone.lstrip("+"), is_confirmed=body.phone_confirm
            )

    # Invitations and links -------------------------------------------------------------------------------------------

    async def invite(self, request: Request, body: Invitation, redirect_to: RedirectTo = "") -> dict[str, Any]:
        self._desk.require_service_role(request)
        email = normalise_email(body.email)
        mailing = Mailing(letter="invite", link_type="invite", redirect_to=self._redirects.choose(redirect_to))
        async with self._database.transaction() as conn:
            user = await self._unconfirmed(conn, email, body.data)
            await codes.mail_code(
                conn, user=user, kind=Kind.CONFIRMATION, email=email, mailing=mailing, link=self._links
            )
            return (await operations.get_user(conn, user.id)).to_json()

    async def generate_link(self, request: Request, body: LinkInput, redirect_to: RedirectTo = "") -> dict[str, Any]:
        """A link as a mail would carry it, for the caller to send: nothing is mailed."""
        self._desk.require_service_role(request)
        if body.type not in LINK_TYPES:
            raise validation_failed(f"Invalid email action link type requested: {body.type[:40]!r}")
        email = normalise_email(body.email)
        target = self._redirects.choose(redirect_to)
        password_hash = None
        if body.type == "signup":
            if not body.password:
                raise validation_failed("Signup requires a valid password")
            self._desk.passwords.require_good(body.password)
            password_hash = await self._desk.passwords.hash(body.password)
        async with self._database.transaction() as conn:
            link_type, kind, user = await self._prepare(conn, email, body, password_hash)
            address = normalise_email(body.new_email) if kind is Kind.EMAIL_CHANGE_NEW else email
            issued = await codes.issue(conn, user=user, kind=kind, email=address, redirect_to=target)
            is_invite = link_type == "invite"
            await queries.mark_mailed(conn, user_id=user.id, kind="invite" if is_invite else kind.value)
            user = await operations.get_user(conn, user.id)
        public_type = "email_change" if link_type.startswith("email_change") else link_type
        return {
            **user.to_json(),
            "action_link": self._links.verify_url(issued.token, public_type, target),
            "email_otp": issued.code,
            "hashed_token": issued.token,
            "verification_type": link_type,
            "redirect_to": target,
        }

    async def _prepare(
        self, conn: Connection, email: str, body: LinkInput, password_hash: str | None
    ) -> tuple[str, Kind, User]:
        """Which link it becomes, and whose. An unknown address makes a magic link a sign-up."""
        user_id = await queries.find_user_id(conn, email)
        user = await queries.find_user(conn, user_id) if user_id is not None else None
        if body.type in {"signup", "invite"}:
            user = await self._unconfirmed(conn, email, body.data, password_hash)
            return body.type, Kind.CONFIRMATION, user
        if user is None and body.type == "magiclink":
            return "signup", Kind.CONFIRMATION, await self._unconfirmed(conn, email, body.data)
        if user is None:
            raise AuthError(404, "user_not_found", "User with this email not found")
        if body.type in {"magiclink", "recovery"}:
            return body.type, Kind.RECOVERY, user
        return await self._prepare_email_change(conn, user, body)

    async def _prepare_email_change(self, conn: Connection, user: User, body: LinkInput) -> tuple[str, Kind, User]:
        new_email = normalise_email(body.new_email)
        if await queries.find_user_id(conn, new_email) is not None:
            raise email_exists()
        if user.email_change != new_email or user.email_change_confirms_left == 0:
            await queries.mark_email_change(conn, user_id=user.id, email=new_email, confirms=1)
        is_new = body.type == "email_change_new"
        return body.type, Kind.EMAIL_CHANGE_NEW if is_new else Kind.EMAIL_CHANGE_CURRENT, user

    async def _unconfirmed(
        self, conn: Connection, email: str, metadata: Mapping[str, Any], password_hash: str | None = None
    ) -> User:
        """The account of the address, made if need be. Raises AuthError email_exists for a confirmed one."""
        user_id = await queries.find_user_id(conn, email)
        user = await queries.find_user(conn, user_id) if user_id is not None else None
        if user is not None and user.is_confirmed:
            raise email_exists()
        if user is not None:
            return user
        return await operations.create_user(
            conn, email=email, password_hash=password_hash, is_confirmed=False, user_metadata=metadata
        )


def _uuid(value: str) -> UUID:
    try:
        return UUID(value)
    except ValueError:
        raise validation_failed("ID must conform to the uuid v4 format") from None


def _positive(value: str, *, default: int) -> int:
    """auth-js sends page and per_page as empty strings when they are not set."""
    if not value:
        return default
    if not (value.isascii() and value.isdigit()) or int(value[:10]) < 1:
        raise validation_failed("page and per_page are positive whole numbers")
    return min(int(value[:10]), 1_000_000)


def _page_links(number: int, size: int, total: int) -> str:
    """`page` comes first: auth-js reads the digits after the first equals sign."""
    last = max(1, -(-total // size))
    links = [f'</admin/users?page={last}&per_page={size}>; rel="last"']
    if number < last:
        links.insert(0, f'</admin/users?page={number + 1}&per_page={size}>; rel="next"')
    return ", ".join(links)
