"""HTTP of second factors under /auth/v1/factors."""

import io
from typing import Any
from uuid import UUID

import pyotp
import segno
from fastapi import APIRouter, Request
from pydantic import Field

from libs.common.database import Connection, Record
from services.gateway.auth import operations
from services.gateway.auth import queries as auth
from services.gateway.auth.desk import AuthInput, Desk
from services.gateway.auth.domain import AuthError, User
from services.gateway.auth.operations import SignedIn
from services.gateway.domain import Identity
from services.gateway.factors import queries
from services.gateway.factors.domain import MAX_FACTORS, matching_step, provisioning_uri


class Enrolment(AuthInput):
    factor_type: str = Field(default="", max_length=20)
    friendly_name: str = Field(default="", max_length=100)
    issuer: str = Field(default="", max_length=100)


class Answer(AuthInput):
    challenge_id: str = Field(default="", max_length=64)
    code: str = Field(default="", max_length=20)


class FactorRoutes:
    def __init__(self, *, desk: Desk) -> None:
        self._desk = desk

    def router(self) -> APIRouter:
        router = APIRouter()
        router.add_api_route("/factors", self.enroll, methods=["POST"])
        router.add_api_route("/factors/{factor_id}/challenge", self.challenge, methods=["POST"])
        router.add_api_route("/factors/{factor_id}/verify", self.verify, methods=["POST"])
        router.add_api_route("/factors/{factor_id}", self.unenroll, methods=["DELETE"])
        return router

    async def enroll(self, request: Request, body: Enrolment) -> dict[str, Any]:
        identity, user = await self._authenticate(request)
        if body.factor_type != "totp":
            raise AuthError(400, "validation_failed", "factor_type needs to be totp")
        if _is_below(identity, user):
            raise AuthError(403, "insufficient_aal", "AAL2 required to enroll a new factor")
        secret = pyotp.random_base32()
        async with self._desk.database.transaction() as conn:
            await queries.delete_unverified(conn, user.id)
            if len((await operations.get_user(conn, user.id)).factors) >= MAX_FACTORS:
                raise AuthError(
                    422, "too_many_enrolled_mfa_factors", "Maximum number of enrolled factors reached, unenroll one"
                )
            factor_id = await queries.insert_factor(conn, user_id=user.id, name=body.friendly_name, secret=secret)
        uri = provisioning_uri(secret, account=user.email or str(user.id), issuer=body.issuer or "Venture Companion")
        totp = {"qr_code": _svg(uri), "secret": secret, "uri": uri}
        return {"id": str(factor_id), "type": "totp", "friendly_name": body.friendly_name, "totp": totp}

    async def challenge(self, request: Request, factor_id: str) -> dict[str, Any]:
        identity, _user = await self._authenticate(request)
        async with self._desk.database.transaction() as conn:
            factor = await _require(conn, identity, factor_id)
            row = await queries.insert_challenge(conn, factor["id"])
        if row is None:
            raise RuntimeError("the insert returned no row")
        return {"id": str(row["id"]), "type": "totp", "expires_at": row["expires_at"]}

    async def verify(self, request: Request, factor_id: str, body: Answer) -> dict[str, Any]:
        """The session becomes aal2 and its refresh token is replaced; sessions below aal2 end."""
        identity, user = await self._authenticate(request)
        async with self._desk.database.transaction() as conn:
            signed_in = await self._check(conn, identity, user, factor_id, body)
        if signed_in is None:  # only now: the guess is counted and committed
            raise AuthError(422, "mfa_verification_failed", "Invalid TOTP code entered")
        return self._desk.session(signed_in)

    async def _check(
        self, conn: Connection, identity: Identity, user: User, factor_id: str, body: Answer
    ) -> SignedIn | None:
        factor = await _require(conn, identity, factor_id)
        challenge_id = _uuid(body.challenge_id)
        is_alive = None
        if challenge_id is not None:
            is_alive = await queries.count_attempt(conn, challenge_id=challenge_id, factor_id=factor["id"])
        if not is_alive:
            raise AuthError(422, "mfa_challenge_expired", "MFA challenge has expired, verify against another challenge")
        step = matching_step(factor["secret"], body.code, now_s=factor["now_s"], last_step=factor["last_step"])
        if step is None or identity.session_id is None:
            return None
        await queries.mark_verified(conn, factor_id=factor["id"], step=step)
        await queries.raise_session(conn, session_id=identity.session_id, user_id=user.id)
        found = await auth.lock_session(conn, identity.session_id)
        if found is None:
            raise AuthError(403, "session_not_found", "Session from session_id claim in JWT does not exist")
        return SignedIn(user=await operations.get_user(conn, user.id), session=found[0])

    async def unenroll(self, request: Request, factor_id: str) -> dict[str, Any]:
        identity, user = await self._authenticate(request)
        async with self._desk.database.transaction() as conn:
            factor = await _require(conn, identity, factor_id)
            if factor["status"] == "verified" and _is_below(identity, user):
                raise AuthError(422, "insufficient_aal", "AAL2 required to unenroll verified factor")
            await queries.delete_factor(conn, user_id=user.id, factor_id=factor["id"])
        return {"id": str(factor["id"])}

    async def _authenticate(self, request: Request) -> tuple[Identity, User]:
        identity, user = await self._desk.authenticate(request)
        if user.is_anonymous:
            raise AuthError(403, "no_authorization", "Anonymous user not allowed to perform these actions")
        return identity, user


def _is_below(identity: Identity, user: User) -> bool:
    """Whether a second factor exists that this session has not shown."""
    has_verified = any(factor["status"] == "verified" for factor in user.factors)
    return has_verified and identity.claims.get("aal") != "aal2"


async def _require(conn: Connection, identity: Identity, factor_id: str) -> Record:
    parsed = _uuid(factor_id)
    factor = None
    if parsed is not None:
        factor = await queries.find_factor(conn, user_id=identity.user_id, factor_id=parsed)
    if factor is None:
        raise AuthError(404, "mfa_factor_not_found", "Factor not found")
    return factor


def _uuid(value: str) -> UUID | None:
    try:
        return UUID(value)
    except ValueError:
        return None


def _svg(uri: str) -> str:
    picture = io.BytesIO()
    segno.make(uri, error="m").save(picture, kind="svg", scale=4, xmldecl=False)
    return picture.getvalue().decode()
