"""What a key looks like and what its scopes allow. Pure."""

import hashlib
import secrets
from typing import Annotated, Final
from uuid import UUID

from pydantic import Field

from libs.common.errors import Forbidden, NotFound
from libs.common.inputs import Input

PREFIX: Final = "vc_"
MAX_KEYS: Final = 25
NEVER: Final = frozenset({"admin", "api-keys", "account", "pages"})
"""What no key may do, whatever its scopes: it could widen its own rights or end the account."""

Scope = Annotated[str, Field(pattern=r"^(\*|[a-z][a-z-]{0,39})(:(read|write))?$", examples=["runs", "usage:read"])]


class KeyNotFound(NotFound):
    code = "gateway.api_key_not_found"


class ScopeMissing(Forbidden):
    code = "gateway.scope_missing"


class NewKey(Input):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=20)] = Field(default_factory=lambda: ["*"])
    expires_in_s: Annotated[int, Field(ge=60, le=315_360_000)] | None = None


class Rotation(Input):
    overlap_s: Annotated[int, Field(ge=0, le=604_800)] = 3600


def new_secret() -> str:
    return PREFIX + secrets.token_hex(24)


def digest(secret: str) -> bytes:
    """A plain hash is enough: 192 random bits cannot be guessed, and nobody chose them."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def allows(scopes: tuple[str, ...], *, route_group: str, method: str) -> bool:
    if route_group in NEVER:
        return False
    access = "read" if method in {"GET", "HEAD"} else "write"
    wanted = {"*", f"*:{access}", route_group, f"{route_group}:{access}"}
    return not wanted.isdisjoint(scopes)


def claims_of(user_id: UUID, key_id: UUID) -> dict[str, str | bool]:
    return {"sub": str(user_id), "role": "authenticated", "is_anonymous": False, "api_key_id": str(key_id)}
