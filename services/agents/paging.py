"""Cursors of lists that run from new to old: where the last page ended, opaque to clients."""

import base64
import binascii
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Annotated, Any, Protocol, TypeVar
from uuid import UUID

from fastapi import Query

from libs.common.errors import BadRequest

Limit = Annotated[int, Query(ge=1, le=100)]
Cursor = Annotated[str | None, Query(max_length=200)]


class CursorMalformed(BadRequest):
    code = "agents.cursor_malformed"

    def __init__(self) -> None:
        super().__init__("The cursor is not one of ours.")


class Listed(Protocol):
    @property
    def id(self) -> UUID: ...

    @property
    def created_at(self) -> datetime: ...


ListedT = TypeVar("ListedT", bound=Listed)


def decode_cursor(cursor: str | None) -> tuple[datetime, UUID] | None:
    """Raises CursorMalformed."""
    if cursor is None:
        return None
    try:
        text = base64.urlsafe_b64decode(cursor.encode()).decode()
        created_at, _, row_id = text.partition("|")
        instant = datetime.fromisoformat(created_at)
        if instant.tzinfo is None:
            raise CursorMalformed
        return instant, UUID(row_id)
    except (ValueError, binascii.Error) as error:
        raise CursorMalformed from error


def page(rows: Sequence[ListedT], *, limit: int, render: Callable[[ListedT], Any]) -> dict[str, Any]:
    """Render a page of `limit` items out of rows that were asked for with one more than that."""
    shown = rows[:limit]
    next_cursor: str | None = None
    if len(rows) > limit:
        last = shown[-1]
        next_cursor = base64.urlsafe_b64encode(f"{last.created_at.isoformat()}|{last.id}".encode()).decode()
    return {"items": [render(row) for row in shown], "next_cursor": next_cursor}
