"""The wall clock of the development tools; the one place they read the time from."""

import time
from datetime import UTC, datetime


def wall_time_s() -> float:
    """Seconds since the Unix epoch, as the machine has it."""
    return time.time()


def wall_moment() -> datetime:
    """The present as an aware UTC instant."""
    return datetime.now(UTC)
