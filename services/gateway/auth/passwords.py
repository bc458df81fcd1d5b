"""argon2id off the event loop, a bounded number at a time: a burst of sign-ins takes neither memory nor the loop."""

import asyncio
import os
import secrets
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from services.gateway.auth.domain import check_password

# OWASP's floor for argon2id: 19 MiB, two passes, one lane; about 30 ms on the machine this was measured on.
_HASHER: Final = PasswordHasher(memory_cost=19_456, time_cost=2, parallelism=1)
_AT_ONCE: Final = min(8, 2 * (os.cpu_count() or 1))


class Passwords:
    """Hashes and checks passwords. A check takes the same time whether or not there is a hash to check against."""

    def __init__(self, *, refuse_common: bool) -> None:
        self._refuse_common = refuse_common
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._decoy = _HASHER.hash(secrets.token_urlsafe(16))

    def require_good(self, password: str) -> None:
        """Raises AuthError for a new password that may not be."""
        check_password(password, refuse_common=self._refuse_common)

    async def hash(self, password: str) -> str:
        async with self._slots:
            return await asyncio.to_thread(_HASHER.hash, password)

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether the password fits; with nothing stored (no such account) it works as hard and says no."""
        async with self._slots:
            fits = await asyncio.to_thread(_verify, stored or self._decoy, password)
        return fits and stored is not None


def _verify(stored: str, password: str) -> bool:
    try:
        return _HASHER.verify(stored, password)
    except (VerifyMismatchError, VerificationError, InvalidHashError):
        return False
