"""Who is calling, what routes belong together, and the gateway's refusals. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from libs.common.errors import Conflict, Forbidden, Invalid, LimitExceeded, NotFound, Unauthenticated


class RateLimited(LimitExceeded):
    code = "gateway.rate_limited"


class SignInRequired(Unauthenticated):
    code = "gateway.sign_in_required"


class InvalidAccessToken(Unauthenticated):
    code = "gateway.invalid_token"


class AdminRequired(NotFound):
    """A 404, not a 403: who is no admin does not learn which admin routes exist."""

    code = "not_found"


class AccountBanned(Forbidden):
    code = "gateway.account_banned"


class IdempotencyKeyReused(Invalid):
    code = "gateway.idempotency_key_reused"


class IdempotencyKeyInFlight(Conflict):
    code = "gateway.idempotency_key_in_flight"

    @property
    def retry_after_s(self) -> int | None:
        return 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The bearer of a verified access token. `claims` are what row-level security reads."""

    user_id: UUID
    session_id: UUID | None
    email: str
    claims: Mapping[str, Any] = field(repr=False)

    @property
    def user_claims(self) -> Mapping[str, Any]:
        """The part of the claims that travels inside: identity and role, no metadata a user could have written."""
        key_id = self.claims.get("api_key_id")
        return {
            "sub": str(self.user_id),
            "role": "authenticated",
            "email": self.email,
            "is_anonymous": bool(self.claims.get("is_anonymous")),
            **({"api_key_id": key_id} if key_id is not None else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the gateway must know of a user beyond the token, at most a few seconds old."""

    tier: str
    is_admin: bool
    is_banned: bool


def is_admin(
    user_id: UUID, *, features: Mapping[str, Any], app_metadata: Mapping[str, Any], listed: tuple[str, ...]
) -> bool:
    """An admin is who the runbook says: the feature flag, the role in the app metadata, or ADMIN_USER_IDS."""
    return features.get("admin") is True or app_metadata.get("role") == "admin" or str(user_id) in listed
