"""What a fault scenario ends with: the counts by which messaging systems are judged, on one line with its seed."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`attempt` were tried, `ack` surely accepted, `ambiguous` answered by an error whose outcome nobody could know.

    Of what was accepted `lost` never had its effect, `dup` is how many effects there were too many, and `unexpected`
    had one although nobody asked. `overshoot` is by how much a limit was passed.
    """

    seed: int
    attempt: int
    ack: int
    ambiguous: int = 0
    lost: int = 0
    dup: int = 0
    unexpected: int = 0
    overshoot: int = 0
    notes: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.dup or self.unexpected or self.overshoot)

    def __str__(self) -> str:
        names = ("seed", "attempt", "ack", "ambiguous", "lost", "dup", "unexpected", "overshoot")
        notes = "".join(f" {name} {value}" for name, value in self.notes.items())
        return " ".join(f"{name} {getattr(self, name)}" for name in names) + notes


def judge(
    *,
    seed: int,
    attempted: Iterable[str],
    acked: Sequence[str],
    effects: Sequence[str],
    ambiguous: int = 0,
    **notes: Any,
) -> Verdict:
    """Compare what was asked, what was accepted and what happened: acked <= effects <= attempted, each once."""
    happened, asked = Counter(effects), set(attempted)
    return Verdict(
        seed=seed,
        attempt=len(asked),
        ack=len(acked),
        ambiguous=ambiguous,
        lost=len(set(acked) - happened.keys()),
        dup=happened.total() - len(happened),
        unexpected=len(happened.keys() - asked),
        notes=dict(notes),
    )


def chance_of(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 - a schedule to repeat, not a secret
