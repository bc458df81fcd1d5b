"""Signed tokens for calls from service to service: short-lived, for one callee, carrying whom the call is made for.

The callee trusts nothing else: identity headers a client may send are neither forwarded nor read.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import jwt

from libs.common.errors import ServiceTokenRefused, Unauthenticated
from libs.common.ids import new_id

LIFETIME_S: Final = 60
ALGORITHM: Final = "HS256"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """On whose behalf an internal call is made. `user_id` is None when the calling service acts for itself."""

    service: str
    user_id: UUID | None = None
    role: str = "anon"
    claims: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The user's access-token claims as row-level security reads them: `sub`, `role`, `is_anonymous`…"""

    def require_user(self) -> UUID:
        if self.user_id is None:
            raise Unauthenticated("This needs a signed-in user.")
        return self.user_id


def mint(secret: str, *, issuer: str, audience: str, user: Mapping[str, Any] | None = None) -> str:
    """Sign a token for one callee. `user` are the claims the callee's row-level security may rely on."""
    now = int(time.time())
    claims: dict[str, Any] = {"iss": issuer, "aud": audience, "iat": now, "exp": now + LIFETIME_S, "jti": str(new_id())}
    if user is not None:
        claims["user"] = dict(user)
    return jwt.encode(claims, secret, algorithm=ALGORITHM)


def verify(token: str, secret: str, *, audience: str) -> Caller:
    """Raises ServiceTokenRefused unless the token is ours, unexpired, short-lived, and made for `audience` alone."""
    try:
        claims = jwt.decode(
            token,
            secret,
            algorithms=[ALGORITHM],
            audience=audience,
            leeway=5,
            options={"require": ["exp", "iat", "iss", "aud", "jti"], "strict_aud": True},
        )
        user: Mapping[str, Any] = claims.get("user") or {}
        if claims["exp"] - claims["iat"] > LIFETIME_S:
            raise ServiceTokenRefused("The service token lives too long.")
        return Caller(
            service=str(claims["iss"]),
            user_id=UUID(str(user["sub"])) if user.get("sub") else None,
            role=str(user.get("role", "anon")),
            claims=user,
        )
    except (jwt.PyJWTError, ValueError, TypeError, AttributeError) as error:
        raise ServiceTokenRefused("The service token is not valid here.") from error
