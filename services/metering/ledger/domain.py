"""How a fact is named and recognised. Pure.

A name is `source` and `event_id`; what a fact says is its content. Of both the first 128 bits of the SHA-256 are kept:
narrow enough to be kept for ever, and the same as `metering.event_key` makes in SQL.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import orjson

from libs.common.errors import NotFound
from services.metering.domain import Amounts

RUNS: Final = "agents.run"
REFUNDS: Final = "metering.refund"
CORRECTIONS: Final = "metering.correction"
RESETS: Final = "metering.reset"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """What a run used in the end; its hold's id is the run's. `attributes` are written down beside it."""

    hold_id: UUID
    user_id: UUID
    used: Amounts
    cost_micro_usd: int = 0
    attributes: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def content(self) -> Mapping[str, Any]:
        used = {str(metric): amount for metric, amount in self.used.items()}
        return {"used": used, "cost_micro_usd": self.cost_micro_usd, **self.attributes}

    @property
    def priced_metric(self) -> str:
        """What the price stands beside in the ledger: the tokens, or the first metric if none were used; or nothing."""
        booked = sorted(metric for metric, amount in self.used.items() if amount)
        return "tokens" if "tokens" in booked else next(iter(booked), "")

    @property
    def digest(self) -> bytes:
        return digest({**self.content, "user_id": str(self.user_id)})


class RunNotBooked(NotFound):
    """Nothing was ever booked for this run."""

    code = "metering.run_not_booked"


def event_key(source: str, event_id: str) -> bytes:
    return _name(f"{source}\n{event_id}".encode())


def digest(content: Mapping[str, Any]) -> bytes:
    return _name(orjson.dumps(content, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS))


def _name(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:16]
