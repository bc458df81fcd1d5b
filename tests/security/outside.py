"""What the gateway's own document says can be asked, and two people who ask."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.harness.house import Person

SECRET: Final = "topsecret of Bea"
# What a body must hold for a route to look for its object at all.
BODIES: Final[Mapping[str, Any]] = {
    "/feedback": {"verdict": "approved"},
    "/bookmark": {"bookmarked": True},
    "/approval": {"decision": "approved"},
    "/v1/templates/": {"name": "x", "instructions": "x"},
    "/v1/admin/users/": {"tier": "pro"},
}
NEVER_TOLD: Final = re.compile(
    r"encrypted_password|refresh_key|token_hash|code_hash|key_hash|stripe_customer_id|stripe_session_id|idempotency_key"
    r"|lease_token|former_secret|argon2|cus_[A-Za-z0-9]{6}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    method: str
    path: str

    def at(self, value: str) -> str:
        return re.sub(r"\{[^}]+\}", value, self.path)

    @property
    def body(self) -> Any:
        nothing: dict[str, Any] = {}
        return next((body for part, body in BODIES.items() if part in self.path), nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Ada, who tries, and Bea, who owns `ids`."""

    ada: Person
    bea: Person
    ids: frozenset[str]
