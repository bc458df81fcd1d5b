"""Access tokens: ES256 JWTs signed with the first configured key, verified with all of them; API keys by role."""

import base64
import hashlib
import json
import time
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import jwt
from jwt.algorithms import ECAlgorithm

from services.gateway.auth.domain import Session, User
from services.gateway.domain import Identity, InvalidAccessToken

ALGORITHM: Final = "ES256"
AUDIENCE: Final = "authenticated"
MAX_TOKEN_LENGTH: Final = 8192
_CACHE_SIZE: Final = 10_000
IDLE_S: Final = 300.0
"""A token that was not sent for so long is forgotten: checking it anew costs less than keeping a past visitor's."""
_KEPT_CLAIMS: Final = ("exp", "aal", "is_anonymous")
"""What is asked of a verified token later. With all its claims a remembered token took 3 kB instead of half of one."""


class AccessTokens:
    """Signs and verifies. Verified tokens are remembered by hash while they are used: an ES256 check costs 0.1 ms."""

    def __init__(self, *, signing_keys: str, issuer: str, ttl_s: int, idle_s: float = IDLE_S) -> None:
        private: list[dict[str, Any]] = json.loads(signing_keys)
        self._issuer = issuer
        self._ttl_s = ttl_s
        self._idle_s = idle_s
        self._signing_kid: str = private[0]["kid"]
        self._signing_key = ECAlgorithm.from_jwk(private[0])
        self._public_jwks = [_public_part(key) for key in private]
        self._verifying = {key["kid"]: ECAlgorithm.from_jwk(key) for key in self._public_jwks}
        self._verified: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()
        """With the time it was last sent; in the order of these times."""

    def jwks(self) -> dict[str, Any]:
        return {"keys": self._public_jwks}

    def sign(self, user: User, session: Session) -> tuple[str, int, int]:
        """Return the token, its lifetime in seconds, and its expiry in unix seconds."""
        now = int(time.time())
        expires_at = now + self._ttl_s
        claims = {
            "iss": self._issuer,
            "sub": str(user.id),
            "aud": AUDIENCE,
            "exp": expires_at,
            "iat": now,
            "email": user.email or "",
            "phone": "",
            "app_metadata": dict(user.app_metadata),
            "user_metadata": dict(user.user_metadata),
            "role": "authenticated",
            "aal": session.aal,
            "amr": [dict(entry) for entry in session.amr],
            "session_id": str(session.id),
            "is_anonymous": user.is_anonymous,
        }
        token = jwt.encode(
            claims,
            self._signing_key,  # pyright: ignore[reportArgumentType] - from_jwk may return either half; ours is private
            algorithm=ALGORITHM,
            headers={"kid": self._signing_kid},
        )
        return token, self._ttl_s, expires_at

    def verify(self, token: str) -> Identity:
        """Raises InvalidAccessToken unless we signed it, for users, and it has not expired (no leeway)."""
        if len(token) > MAX_TOKEN_LENGTH:
            raise InvalidAccessToken("The access token is too long.")
        # The whole token's hash is the cache key: a prefix would let one token answer for another.
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        now = time.time()
        remembered = self._verified.pop(digest, None)
        if remembered is None or remembered[1].claims["exp"] <= now:
            identity = _identity(self._decode(token))
            while self._verified and (self._is_idle(now) or len(self._verified) >= _CACHE_SIZE):
                self._verified.popitem(last=False)
        else:
            identity = remembered[1]
        self._verified[digest] = now, identity
        return identity

    @property
    def count(self) -> int:
        """How many are remembered."""
        return len(self._verified)

    def _is_idle(self, now: float) -> bool:
        """Whether nobody has sent the first of the remembered tokens for long."""
        return next(iter(self._verified.values()))[0] <= now - self._idle_s

    def _decode(self, token: str) -> Mapping[str, Any]:
        try:
            header = jwt.get_unverified_header(token)
            if header.get("alg") != ALGORITHM or "crit" in header:
                raise InvalidAccessToken("The access token is not valid.")
            key = self._verifying.get(str(header.get("kid")))
            if key is None:
                raise InvalidAccessToken("The access token was signed by an unknown key.")
            return jwt.decode(
                token,
                key,  # pyright: ignore[reportArgumentType] - see `sign`
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=self._issuer,
                options={"require": ["exp", "iat", "sub", "aud", "iss"], "strict_aud": True},
            )
        except (jwt.PyJWTError, ValueError, TypeError) as error:
            raise InvalidAccessToken("The access token is not valid or has expired.") from error


def _identity(claims: Mapping[str, Any]) -> Identity:
    try:
        session_id = claims.get("session_id")
        if claims.get("role") != "authenticated":
            raise InvalidAccessToken("The access token is not a user's.")
        return Identity(
            user_id=UUID(claims["sub"]),
            session_id=UUID(session_id) if session_id else None,
            email=str(claims.get("email", "")),
            claims={name: claims[name] for name in _KEPT_CLAIMS if name in claims},
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise InvalidAccessToken("The access token names no user.") from error


def _public_part(key: Mapping[str, Any]) -> dict[str, Any]:
    public = {name: key[name] for name in ("kty", "crv", "x", "y", "kid")}
    return {**public, "alg": ALGORITHM, "use": "sig", "key_ops": ["verify"]}


class ApiKeys:
    """The two keys of `createClient`: anon and service_role, HS256 JWTs we made ourselves."""

    def __init__(self, *, anon_key: str, service_role_key: str, secret: str) -> None:
        self._roles = {_digest(anon_key): "anon", _digest(service_role_key): "service_role"}
        self._secret = secret

    def role_of(self, key: str) -> str | None:
        """The role of a key, or None for one that is not ours. Looked up by hash: its time says nothing of the key."""
        return self._roles.get(_digest(key))

    def is_service_role(self, bearer: str) -> bool:
        """Admin rights come from the bearer: our own service key, or another token signed with the project's secret."""
        if self.role_of(bearer) == "service_role":
            return True
        if not self._secret:
            return False
        try:
            claims = jwt.decode(
                bearer, self._secret, algorithms=["HS256"], options={"require": ["exp"], "verify_aud": False}
            )
        except (jwt.PyJWTError, ValueError):
            return False
        return claims.get("role") in {"service_role", "supabase_admin"}


def _digest(value: str) -> bytes:
    return hashlib.sha256(value.encode("utf-8", "surrogatepass")).digest()


def new_signing_key(kid: str) -> dict[str, str]:
    """Make a private ES256 JWK, for set-up and rotation."""
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415 - set-up only

    numbers = ec.generate_private_key(ec.SECP256R1()).private_numbers()

    def b64(number: int) -> str:
        return base64.urlsafe_b64encode(number.to_bytes(32, "big")).decode().rstrip("=")

    public = numbers.public_numbers
    return {
        "kty": "EC",
        "crv": "P-256",
        "x": b64(public.x),
        "y": b64(public.y),
        "d": b64(numbers.private_value),
        "kid": kid,
    }
