"""The project's keys, kept and asked for again; its tokens, checked with them; its sessions, asked about."""

import asyncio
import hashlib
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final, cast
from uuid import UUID

import httpx
import jwt
import structlog
from jwt import PyJWK

from libs.common.database import Connection
from libs.common.httpx_failures import HTTPX_FAILURES
from services.gateway.domain import Identity, InvalidAccessToken, SignInRequired
from services.gateway.project import queries
from services.gateway.project.domain import (
    ASK_AGAIN_AFTER_S,
    SESSION_KEPT_S,
    ProjectUnavailable,
    sighting_of,
)

log = structlog.get_logger(__name__)

AUDIENCE: Final = "authenticated"
MAX_TOKEN_LENGTH: Final = 16_384
_ASYMMETRIC: Final = frozenset({"ES256", "RS256", "EdDSA"})
_CACHE_SIZE: Final = 10_000


class Project:
    """The project's API as the gateway uses it: key set, whose token is this, delete this user."""

    TIMEOUT: Final = httpx.Timeout(4.0, connect=1.0, pool=1.0)
    """For the client that is handed in: below the 5 s in which every answer is promised."""

    def __init__(self, client: httpx.AsyncClient, *, anon_key: str, service_role_key: str) -> None:
        self.client = client
        self._anon_key = anon_key
        self._service_role_key = service_role_key

    async def read_keys(self) -> list[dict[str, Any]]:
        response = await self._ask("GET", "/auth/v1/.well-known/jwks.json", {})
        keys: Any = response.json().get("keys") if response.is_success else None
        if not isinstance(keys, list):
            raise ProjectUnavailable("The sign-in service does not show its keys.", retry_after_s=2)
        return [cast("dict[str, Any]", key) for key in cast("list[Any]", keys) if isinstance(key, dict)]

    async def knows(self, token: str) -> bool:
        """Whether the token's session is still alive: the project answers that by itself."""
        headers = {"apikey": self._anon_key, "Authorization": f"Bearer {token}"}
        return (await self._ask("GET", "/auth/v1/user", headers)).is_success

    async def delete_user(self, user_id: UUID) -> None:
        """Delete there; gone already is as good. Raises ProjectUnavailable."""
        headers = {"apikey": self._service_role_key, "Authorization": f"Bearer {self._service_role_key}"}
        response = await self._ask("DELETE", f"/auth/v1/admin/users/{user_id}", headers)
        if not response.is_success and response.status_code != 404:  # noqa: PLR2004
            raise ProjectUnavailable("The sign-in service did not delete the account.", retry_after_s=5)

    async def prove(self, email: str, password: str) -> tuple[str | None, bool]:
        """An access token for the right password, else None; and whether a second factor goes with it."""
        response = await self._ask(
            "POST",
            "/auth/v1/token?grant_type=password",
            {"apikey": self._anon_key},
            body={"email": email, "password": password},
        )
        if not response.is_success:
            return None, False
        session: dict[str, Any] = response.json()
        factors: list[dict[str, Any]] = session["user"].get("factors") or []
        return session["access_token"], any(factor.get("status") == "verified" for factor in factors)

    async def _ask(
        self, method: str, path: str, headers: Mapping[str, str], *, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        try:
            response = await self.client.request(method, path, headers=headers, json=body)
        except HTTPX_FAILURES as error:
            raise ProjectUnavailable("The sign-in service does not answer.", retry_after_s=2) from error
        if response.status_code >= 500 or response.status_code == 429:  # noqa: PLR2004
            raise ProjectUnavailable("The sign-in service cannot answer now.", retry_after_s=2)
        return response


class ProjectKeys:
    """The public keys by id. Read when first needed, when they are old, and when an id is new; kept if that fails."""

    def __init__(self, project: Project, *, kept_s: float) -> None:
        self._project = project
        self._kept_s = kept_s
        self._ask_again_after_s = min(kept_s, ASK_AGAIN_AFTER_S)
        self._keys: Mapping[str, PyJWK] = {}
        self._read_at = self._asked_at = -math.inf
        self._reading = asyncio.Lock()

    async def find(self, kid: str) -> PyJWK | None:
        now = time.monotonic()
        if kid in self._keys and now - self._read_at < self._kept_s:
            return self._keys[kid]
        if now - self._asked_at >= self._ask_again_after_s:
            await self._read_once(now)
        elif not self._keys:
            raise ProjectUnavailable("The sign-in service does not show its keys.", retry_after_s=2)
        return self._keys.get(kid)

    async def _read_once(self, wanted_at: float) -> None:
        async with self._reading:  # whoever waited here has been served by whoever did not
            if self._asked_at >= wanted_at:
                return
            self._asked_at = time.monotonic()
            try:
                found = await self._project.read_keys()
            except ProjectUnavailable as error:
                if not self._keys:
                    raise
                log.warning("project_keys_not_read", error=error.detail)
                return
            self._keys = dict(_usable(found))
            self._read_at = time.monotonic()


def _usable(found: list[dict[str, Any]]) -> list[tuple[str, PyJWK]]:
    keys: list[tuple[str, PyJWK]] = []
    for each in found:
        try:
            if each.get("alg") in _ASYMMETRIC and isinstance(each.get("kid"), str):
                keys.append((each["kid"], PyJWK(each)))
        except jwt.PyJWTError:
            log.warning("project_key_not_understood", kid=str(each.get("kid"))[:64])
    return keys


class ProjectTokens:
    """Verifies the project's access tokens: by its key set, or by the shared secret if there is one."""

    def __init__(self, keys: ProjectKeys, *, issuer: str, secret: str) -> None:
        self._keys = keys
        self._issuer = issuer
        self._secret = secret
        self._verified: OrderedDict[bytes, Mapping[str, Any]] = OrderedDict()

    async def verify(self, token: str) -> Identity:
        """Raises InvalidAccessToken, or ProjectUnavailable when the keys were never seen."""
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidAccessToken("The access token is too long.")
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        claims = self._verified.get(digest)
        if claims is None or claims["exp"] <= time.time():
            claims = await self._decode(token)
            self._verified[digest] = claims
            if len(self._verified) > _CACHE_SIZE:
                self._verified.popitem(last=False)
        return _identity(claims, token)

    async def _decode(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if "crit" in header:
                raise InvalidAccessToken("The access token is not valid.")
            # The key decides the algorithm: a secret never checks a public key's token, nor the other way round.
            algorithm = header.get("alg")
            key: PyJWK | str | None
            if algorithm == "HS256":
                key, algorithms = self._secret or None, ["HS256"]
            else:
                key = await self._keys.find(str(header.get("kid")))
                algorithms = [key.algorithm_name] if key is not None else []
            if key is None or algorithm not in algorithms:
                raise InvalidAccessToken("The access token was signed by an unknown key.")
            return jwt.decode(
                token,
                key,
                algorithms=algorithms,
                audience=AUDIENCE,
                issuer=self._issuer,
                options={"require": ["exp", "iat", "sub", "aud", "iss"], "strict_aud": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise InvalidAccessToken("The access token is not valid or has expired.") from error


def _identity(claims: Mapping[str, Any], token: str) -> Identity:
    try:
        if claims.get("role") != "authenticated":
            raise InvalidAccessToken("The access token is not a user's.")
        session_id = claims.get("session_id")
        return Identity(
            user_id=UUID(claims["sub"]),
            session_id=UUID(session_id) if session_id else None,
            email=str(claims.get("email") or ""),
            claims=claims,
            token=token,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidAccessToken("The access token names no user.") from error


class ProjectSessions:
    """Whether a session is alive is the project's to say; its word is kept for a few seconds."""

    def __init__(self, project: Project) -> None:
        self._project = project
        self._alive: OrderedDict[bytes, float] = OrderedDict()

    async def require(self, identity: Identity) -> None:
        digest = hashlib.sha256(identity.token.encode("utf-8", "surrogatepass")).digest()
        if self._alive.get(digest, 0.0) > time.monotonic():
            return
        if not identity.token or not await self._project.knows(identity.token):
            raise SignInRequired("This session has ended; sign in again.")
        self._alive[digest] = time.monotonic() + SESSION_KEPT_S
        if len(self._alive) > _CACHE_SIZE:
            self._alive.popitem(last=False)


async def keep_in_step(conn: Connection, identity: Identity) -> None:
    """What the token says of its user, in our tables before anything is asked of them."""
    seen = sighting_of(identity)
    if seen is not None:
        await queries.take_over_user(conn, identity.user_id, seen)
