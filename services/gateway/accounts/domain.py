"""A profile, and what a user may change of it."""

from typing import Annotated, Any
from uuid import UUID
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field

from libs.common.errors import Invalid, NotFound
from libs.common.inputs import Input

Line = Annotated[str, Field(max_length=200)]


class ProfileNotFound(NotFound):
    code = "gateway.profile_not_found"


def _known_timezone(value: str) -> str:
    if value not in available_timezones():
        raise ValueError("is not an IANA time zone such as Europe/Berlin")
    return value


class ProfileChange(Input):
    """What the user tells of themself; fields left out stay as they are."""

    name: Line | None = None
    role: Line | None = None
    vertical: Line | None = None
    stack: Annotated[list[Line], Field(max_length=50)] | None = None
    tone: Line | None = None
    risk_tolerance: Line | None = None
    kpi_focus: Line | None = None
    perspective: Line | None = None
    company_context: Annotated[str, Field(max_length=5000)] | None = None
    timezone: Annotated[str, AfterValidator(_known_timezone)] | None = None

    def changes(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class DeletionUnconfirmed(Invalid):
    code = "gateway.deletion_unconfirmed"


class Deletion(Input):
    confirm: bool | Annotated[str, Field(max_length=254)] = False


def require_confirmation(word: str | bool, *, email: str) -> None:  # noqa: FBT001 - a word, or plainly true
    """Raises DeletionUnconfirmed: what cannot be taken back must be said twice."""
    if str(word).strip().lower() in {"true", email.lower()} - {""}:
        return
    raise DeletionUnconfirmed(
        'Deleting an account cannot be undone. Confirm with {"confirm": "<the account\'s e-mail address>"}, or true.'
    )


def user_channel(user_id: UUID) -> str:
    """Where replicas hint to one another that the user's event stream has grown."""
    return f"user:{user_id}"
