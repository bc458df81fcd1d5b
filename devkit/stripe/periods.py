"""Billing periods: calendar arithmetic on Unix seconds, anchored so that the 31st comes back after February."""

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import cast

from devkit.stripe.errors import Json

MONTHS = {"month": 1, "year": 12}
DAYS = {"day": 1, "week": 7}
MONTHS_A_YEAR = 12


def shifted(anchor: int, interval: str, steps: int) -> int:
    """The anchor moved by whole intervals; a day the month lacks becomes its last day."""
    at = datetime.fromtimestamp(anchor, UTC)
    if interval in DAYS:
        return int((at + timedelta(days=DAYS[interval] * steps)).timestamp())
    months = at.month - 1 + MONTHS[interval] * steps
    year, month = at.year + months // MONTHS_A_YEAR, months % MONTHS_A_YEAR + 1
    return int(at.replace(year=year, month=month, day=min(at.day, monthrange(year, month)[1])).timestamp())


def next_boundary(anchor: int, price: Json, after: int) -> int:
    """The first period boundary later than `after`."""
    recurring = cast("Json", price["recurring"])
    if anchor > after:
        return anchor
    for number in count(1):
        boundary = shifted(anchor, recurring["interval"], number * recurring["interval_count"])
        if boundary > after:
            return boundary
    raise AssertionError("unreachable")
