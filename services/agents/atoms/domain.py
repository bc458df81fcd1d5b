"""What an admin may say of an atom, and when a change makes a new version of it."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

Category = Literal["tone", "stack", "perspective", "phase", "domain", "constraint", "example", "goal", "risk"]
MAX_WEIGHT: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AtomText:
    """An atom as it is written. What models are told is `title` and `body`; the rest decides when."""

    key: str
    category: Category
    title: str
    body: str
    tags: frozenset[str] = field(default_factory=frozenset[str])
    is_default: bool = False
    position: int = 100
    weight: int = 100
    target_roles: frozenset[str] = field(default_factory=frozenset[str])
    verticals: frozenset[str] = field(default_factory=frozenset[str])
    incompatible_with: frozenset[str] = field(default_factory=frozenset[str])
    is_active: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class CuratedAtom:
    """An atom as admins see it: with what users thought of this version, and who changed it last."""

    text: AtomText
    version: int
    approvals: int
    rejections: int
    changed_at: datetime
    changed_by: str | None


def is_new_version(before: AtomText, after: AtomText) -> bool:
    """Whether models are told something else: only then do users' verdicts begin anew."""
    return (before.title, before.body, before.category) != (after.title, after.body, after.category)
