"""A switch as a replica knows it."""

from dataclasses import dataclass
from typing import Final

MAINTENANCE: Final = "maintenance"


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchView:
    is_on: bool
    expires_in_s: float | None
    """As the database saw it when the row was read: a replica's clock decides nothing."""
