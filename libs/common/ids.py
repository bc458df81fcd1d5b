"""Identifiers: UUIDv7 (RFC 9562), so that primary keys grow with time and indices stay dense."""

from uuid import UUID

import uuid_utils
from uuid_utils.compat import uuid7


def new_id() -> UUID:
    return uuid7()


def new_id_text() -> str:
    """The same as text: without a UUID of Python's on the way it takes an eighth of the time."""
    return str(uuid_utils.uuid7())
