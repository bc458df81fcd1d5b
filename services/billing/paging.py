"""Cursors of lists that are sorted by time and id: opaque to clients, checked when they come back."""

import base64
import binascii
from datetime import UTC, datetime

import orjson

from libs.common.errors import Invalid


def cursor_after(at: datetime, row_id: str) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([at.isoformat(), row_id])).decode()


def read_cursor(cursor: str | None) -> tuple[datetime, str] | None:
    """Time and id of the last row that was seen; raises Invalid for what was not made here."""
    if not cursor:
        return None
    try:
        at, row_id = orjson.loads(base64.urlsafe_b64decode(cursor))
        return datetime.fromisoformat(at).astimezone(UTC), str(row_id)
    except (ValueError, TypeError, OverflowError, binascii.Error):
        raise Invalid("The cursor is not one of ours.") from None
