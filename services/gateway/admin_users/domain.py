"""What an admin may change of a user, and cursors of lists. Pure."""

import base64
from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import Field

from libs.common.errors import Forbidden, Invalid
from libs.common.inputs import Input


class OwnRights(Forbidden):
    code = "gateway.own_rights"


class UserPatch(Input):
    """Fields left out stay as they are."""

    tier: Literal["free", "pro", "pro+", "enterprise"] | None = None
    admin: bool | None = None
    banned: bool | None = None
    reason: Annotated[str, Field(max_length=500)] = ""


def write_cursor(at: datetime, row_id: UUID) -> str:
    return base64.urlsafe_b64encode(f"{at.isoformat()}|{row_id}".encode()).decode().rstrip("=")


def read_cursor(cursor: str) -> tuple[datetime, UUID] | None:
    """None for no cursor. Raises Invalid for one that is not ours."""
    if not cursor:
        return None
    try:
        at, _, row_id = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition("|")
        moment = datetime.fromisoformat(at)
        if moment.tzinfo is None:
            raise Invalid("The cursor is not one of this list's.")
        return moment, UUID(row_id)
    except ValueError:
        raise Invalid("The cursor is not one of this list's.") from None
