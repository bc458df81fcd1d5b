"""What a project's token says of its user, and when its keys are asked for again. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, cast

from libs.common.errors import Unavailable
from services.gateway.domain import Identity

ASK_AGAIN_AFTER_S: Final = 5.0
"""An unknown key id has the key set read anew, but made-up ids cannot have it read all the time."""
SESSION_KEPT_S: Final = 5.0


class ProjectUnavailable(Unavailable):
    code = "gateway.sign_in_unavailable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """A user as one token told of them; the token's age decides between two sightings."""

    email: str | None
    app_metadata: Mapping[str, Any] = field(repr=False)
    user_metadata: Mapping[str, Any] = field(repr=False)
    is_anonymous: bool
    at: datetime


def sighting_of(identity: Identity) -> Sighting | None:
    """None for who came with an API key: that says nothing new of the user."""
    issued_at = identity.claims.get("iat")
    if not isinstance(issued_at, int):
        return None
    email = identity.email.strip().lower() or None
    return Sighting(
        email=email,
        app_metadata=_object(identity.claims.get("app_metadata")),
        user_metadata=_object(identity.claims.get("user_metadata")),
        # Without an address an account is nobody's in particular, whatever the project calls it (phone, SSO).
        is_anonymous=email is None,
        at=datetime.fromtimestamp(issued_at, UTC),
    )


def _object(value: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}
