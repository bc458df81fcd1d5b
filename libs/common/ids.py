"""Identifiers: UUIDv7 (RFC 9562), so that primary keys grow with time and indices stay dense."""

from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    return uuid7()
