"""A profile, and what a user may change of it."""

from typing import Annotated, Any
from uuid import UUID
from zoneinfo import available_timezones

from pydantic import AfterValidator, Field

from libs.common.errors import NotFound
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


def user_channel(user_id: UUID) -> str:
    """Where replicas hint to one another that the user's event stream has grown."""
    return f"user:{user_id}"
