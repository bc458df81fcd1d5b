"""How often one account may be tried, from however many addresses: guesses at one account come from many."""

import hashlib

from services.gateway.domain import RateLimited
from services.gateway.limited.state import LimitedRequests
from services.gateway.limits import Limit, RateLimiter


class Attempts:
    """Counted by the address that was typed, whether or not there is an account: the refusal tells nothing of it.

    A right password counts, too, and is refused with the rest: else the refusal would tell which one was right. Open
    sessions, links and codes are not touched, so who is being attacked is kept waiting at the form and nowhere else.
    """

    def __init__(self, limiter: RateLimiter, limited: LimitedRequests, *, limit: Limit) -> None:
        self._limiter = limiter
        self._limited = limited
        self._limit = limit

    async def take(self, email: str) -> None:
        """Raises RateLimited."""
        # Hashed here already: what was typed may be a password in the wrong field, and admins read who was limited.
        subject = f"account:{hashlib.sha256(email.encode('utf-8', 'replace')).hexdigest()[:16]}"
        verdict = await self._limiter.take(subject, self._limit)
        if verdict.allowed:
            return
        self._limited.note(subject=subject, limit_name=self._limit.name, route_group="auth")
        raise RateLimited("Too many attempts.", retry_after_s=verdict.retry_after_s, policy=self._limit.name)
