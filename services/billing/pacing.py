"""How fast, how many at once, and whether at all a provider is called: one gate per process, in front of every call."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Final

from services.billing.domain import PaymentsRefused, PaymentsUnavailable

BREAKS_AFTER: Final = 10
BROKEN_FOR_S: Final = 5.0


class Gate:
    """Lets `per_s` calls a second through, `at_once` at a time; shut for a while after failures in a row.

    Shut, it answers at once instead of keeping a user waiting for a provider that is away. The first call after the
    pause, and it alone, tries it: an answer opens the gate, a failure shuts it again.
    """

    def __init__(self, *, per_s: float, at_once: int, broken_for_s: float = BROKEN_FOR_S) -> None:
        self._interval_s = 1 / per_s
        self._broken_for_s = broken_for_s
        self._slots = asyncio.Semaphore(at_once)
        self._next_at = 0.0
        self._failures = 0
        self._shut_until = 0.0

    @asynccontextmanager
    async def enter(self) -> AsyncGenerator[None, None]:
        """Raises PaymentsUnavailable while shut. What the body raises as PaymentsUnavailable counts as a failure."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._shut_until:
            raise PaymentsUnavailable("Stripe is away; it is asked again in a moment.", retry_after_s=5)
        if self._failures >= BREAKS_AFTER:
            self._shut_until = loop.time() + self._broken_for_s  # for all but this call, which finds out
        async with self._slots:
            start_at = max(loop.time(), self._next_at)
            self._next_at = start_at + self._interval_s
            await asyncio.sleep(start_at - loop.time())
            try:
                yield
            except (PaymentsUnavailable, asyncio.CancelledError):  # given up waiting: too slow is a failure, too
                self._failures += 1
                if self._failures >= BREAKS_AFTER:
                    self._shut_until = loop.time() + self._broken_for_s
                raise
            except PaymentsRefused:  # an answer like any other
                self._open()
                raise
            self._open()

    def _open(self) -> None:
        self._failures = 0
        self._shut_until = 0.0
