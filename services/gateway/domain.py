"""Who is calling, who is answering, and the gateway's refusals. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
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
    """The bearer of a verified access token. `claims` are those of it that are asked for later."""

    user_id: UUID
    session_id: UUID | None
    email: str
    claims: Mapping[str, Any] = field(repr=False)
    token: str = field(default="", repr=False)
    """The access token itself, where another house must be asked whether its session is still alive."""
    subject: str = field(init=False, repr=False)
    """Whom limits count, made once: a UUID is written, hashed and compared by Python, for each request."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "subject", f"user:{self.user_id}")

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


OPENS_AFTER: Final = 5
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 5.0
"""A service that is back is noticed within this; what is promised after a fault is 15 s."""


class Breaker:
    """A circuit breaker: after five silences in a row nobody waits any more, but one at a time goes and looks.

    Only silence counts (no connection, no answer in time): a service that refuses or fails answers. The caller brings
    the time, in monotonic seconds, and says of each call that was let through how it ended.
    """

    def __init__(self) -> None:
        self._silences = 0
        self._pause_s = FIRST_PAUSE_S
        self._closed_until = 0.0
        self._is_looking = False

    @property
    def is_open(self) -> bool:
        return self._silences >= OPENS_AFTER

    def lets_through(self, now_s: float) -> bool:
        if not self.is_open:
            return True
        if self._is_looking or now_s < self._closed_until:
            return False
        self._is_looking = True
        return True

    def answered(self) -> bool:
        """Whether it had been cut off."""
        was_open = self.is_open
        self._silences, self._pause_s, self._is_looking = 0, FIRST_PAUSE_S, False
        return was_open

    def failed(self, now_s: float) -> bool:
        """Whether it has been cut off by this."""
        was_open = self.is_open
        self._silences += 1
        if self.is_open and (self._is_looking or not was_open):
            self._closed_until = now_s + self._pause_s
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self._is_looking = False
        return self.is_open and not was_open

    def gave_up(self) -> None:
        """The call ended without telling anything."""
        self._is_looking = False
