"""How a fact is named and recognised. Pure.

A name is `source` and `event_id`; what a fact says is its content. Of both the first 128 bits of the SHA-256 are kept:
narrow enough to be kept for ever, and the same as `metering.event_key` makes in SQL.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Final

import orjson

from libs.common.errors import NotFound

RUNS: Final = "agents.run"
REFUNDS: Final = "metering.refund"
CORRECTIONS: Final = "metering.correction"
RESETS: Final = "metering.reset"


class RunNotBooked(NotFound):
    """Nothing was ever booked for this run."""

    code = "metering.run_not_booked"


def event_key(source: str, event_id: str) -> bytes:
    return _name(f"{source}\n{event_id}".encode())


def digest(content: Mapping[str, Any]) -> bytes:
    return _name(orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS))


def _name(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]
