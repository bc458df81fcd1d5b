"""The one place that reads the wall clock; whatever decides about money or leases asks the database instead."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the current instant, aware and in UTC."""


def system_clock() -> datetime:
    return datetime.now(UTC)


def iso_millis(instant: datetime) -> str:
    """Render as the product's JSON does everywhere: `2024-01-01T00:00:00.000Z`."""
    return instant.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def iso_micros(instant: datetime) -> str:
    """Render with microseconds, as Supabase Auth does: `2024-01-01T00:00:00.000000Z`."""
    return instant.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
