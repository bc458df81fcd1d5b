"""What was tried and surely accepted during a soak, and how each answer came; a promise that broke ends it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.faults.clients import ANSWER_WITHIN_S

KEPT_EXAMPLES: Final = 20


class BrokenPromise(Exception):
    """The soak ends here; the text says which promise broke, and by what."""


@dataclass(slots=True)
class Books:
    """By kind (sign-up, run, usage event, subscription): the names of what was tried for, and of what was accepted."""

    attempted: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    accepted: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    ambiguous: int = 0
    """Orders that at some moment had failed so that nobody could know whether they were placed."""
    recovered: int = 0
    """Of these, the ones that then were surely placed by asking again under the same key."""
    waits_s: list[float] = field(default_factory=list[float])
    statuses: Counter[str] = field(default_factory=Counter[str])
    late: list[str] = field(default_factory=list[str])
    """Answers that came later than promised."""
    streams: int = 0
    cuts: int = 0
    paying: dict[str, str] = field(default_factory=dict[str, str])
    """The last subscription at Stripe of each user who has one."""
    limited: set[str] = field(default_factory=set[str])
    """Users who stay on the smallest plan and ask for more than it has."""
    duplicates: int = 0
    forged: int = 0

    def attempt(self, kind: str, names: Sequence[str]) -> None:
        self.attempted.setdefault(kind, set()).update(names)

    def accept(self, kind: str, names: Sequence[str]) -> None:
        self.accepted.setdefault(kind, set()).update(names)

    def note(self, answer: httpx.Response, wait_s: float, *, is_excused: bool) -> None:
        """Judge one answer by itself. It is excused from being in time if the process asked was itself stopped."""
        what = f"{answer.request.method} {answer.request.url.path}: {answer.status_code}"
        self.statuses[str(answer.status_code)] += 1
        if answer.status_code >= 500 and (answer.status_code != 503 or "retry-after" not in answer.headers):
            raise BrokenPromise(f"no 5xx but 503 with Retry-After: {what} {answer.text[:300]}")
        if is_excused:
            return
        self.waits_s.append(wait_s)
        if wait_s > ANSWER_WITHIN_S:
            self.late.append(f"{what} after {wait_s:.1f} s")

    @property
    def p99_s(self) -> float:
        return sorted(self.waits_s)[int(len(self.waits_s) * 0.99)] if self.waits_s else 0.0

    def counts(self) -> dict[str, Any]:
        return {
            "attempted": {kind: len(names) for kind, names in sorted(self.attempted.items())},
            "accepted": {kind: len(names) for kind, names in sorted(self.accepted.items())},
            "answers": len(self.waits_s),
            "statuses": dict(sorted(self.statuses.items())),
            "slowest_s": round(max(self.waits_s, default=0.0), 2),
            "p99_s": round(self.p99_s, 2),
            "late": len(self.late),
            "examples_late": self.late[:KEPT_EXAMPLES],
            "streams": self.streams,
            "pieces_of_streams": self.cuts,
            "duplicates_sent": self.duplicates,
            "forged_refused": self.forged,
        }
