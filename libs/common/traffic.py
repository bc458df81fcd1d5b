"""What one process answered in the last five minutes: shares of failures and how long answers took.

The same that alerts compute from the histograms, at hand where no Prometheus is.
"""

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

from libs.common.health import Finding, at_most

WINDOW_S: Final = 300.0
SLICE_S: Final = 10.0
FEWEST: Final = 20
"""Below so many requests a share says more about chance than about the service."""
_STEPS_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2000, 5000, 30_000)


@dataclass(slots=True)
class _Slice:
    began_at: float
    answers: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    durations: Counter[int] = field(default_factory=Counter[int])


class Traffic:
    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._slices: deque[_Slice] = deque()

    def record(self, *, route: str, status: int, elapsed_s: float, is_patient: bool = False) -> None:
        """`is_patient`: the client asked to wait for a result, so that its time says nothing about us."""
        now = self._clock()
        if not self._slices or now - self._slices[-1].began_at >= SLICE_S:
            self._forget(now)
            self._slices.append(_Slice(now))
        current = self._slices[-1]
        current.answers[route, status] += 1
        if not is_patient:
            current.durations[_STEPS_MS[min(bisect_left(_STEPS_MS, elapsed_s * 1000), len(_STEPS_MS) - 1)]] += 1

    def share_percent(
        self, *, of: Callable[[str, int], bool], among: Callable[[str, int], bool], at_most_percent: float
    ) -> Finding:
        """How many percent of the answers `among` are `of` a kind; 0 while there are too few to tell."""
        answers = self._answers()
        total = sum(count for key, count in answers.items() if among(*key))
        bad = sum(count for key, count in answers.items() if among(*key) and of(*key))
        return at_most(100 * bad / total if total >= FEWEST else 0, at_most_percent)

    def count(self, of: Callable[[str, int], bool]) -> int:
        return sum(count for key, count in self._answers().items() if of(*key))

    def p95_ms(self, *, at_most_ms: float) -> Finding:
        """Within which step of the histogram 95 percent of the answers began."""
        durations: Counter[int] = Counter()
        for part in self._recent():
            durations.update(part.durations)
        total, seen = sum(durations.values()), 0
        if total < FEWEST:
            return at_most(0, at_most_ms)
        for step in _STEPS_MS:
            seen += durations[step]
            if seen >= 0.95 * total:
                return at_most(step, at_most_ms)
        return at_most(_STEPS_MS[-1], at_most_ms)

    def _answers(self) -> Counter[tuple[str, int]]:
        answers: Counter[tuple[str, int]] = Counter()
        for part in self._recent():
            answers.update(part.answers)
        return answers

    def _recent(self) -> Collection[_Slice]:
        self._forget(self._clock())
        return self._slices

    def _forget(self, now: float) -> None:
        while self._slices and now - self._slices[0].began_at > WINDOW_S:
            self._slices.popleft()
