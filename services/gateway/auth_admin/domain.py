"""Durations as Go writes them, and the links a service may ask for. Pure."""

import re
from typing import Final

from services.gateway.auth.domain import validation_failed

_DURATION: Final = re.compile(r"(?:(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s))")
_SECONDS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
MAX_DURATION_S: Final = 100 * 365.25 * 86_400
LINK_TYPES: Final = ("signup", "invite", "magiclink", "recovery", "email_change_current", "email_change_new")


def read_ban(duration: str) -> float | None:
    """Seconds of a Go duration such as `24h` or `1h30m`; None for `none`, which lifts a ban. Raises AuthError."""
    if duration == "none":
        return None
    parts = _DURATION.findall(duration[:100])
    if not parts or "".join(number + unit for number, unit in parts) != duration:
        raise validation_failed(f"invalid format for ban duration: {duration[:40]!r}")
    return min(sum(float(number) * _SECONDS[unit] for number, unit in parts), MAX_DURATION_S)
