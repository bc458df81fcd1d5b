"""argon2id off the event loop, a bounded number at a time: a burst of sign-ins takes neither memory nor the loop."""

import asyncio
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError

from services.gateway.auth.domain import check_password

# OWASP's floor for argon2id: 19 MiB, two passes, one lane; about 30 ms on the machine this was measured on.
_HASHER: Final = PasswordHasher(memory_cost=19_456, time_cost=2, parallelism=1)
# Threads of its own, and no more than compute at once: the C library keeps a hash's 19 MiB for each thread that ever
# made one, and the loop's own pool has more of them: a gateway held 160 MB instead of 120. To have the memory given
# back each time would cost 10 ms of processor a hash, half as much again.
_THREADS: Final = min(4, os.cpu_count() or 1)


class Passwords:
    """Hashes and checks passwords. A check takes the same time whether or not there is a hash to check against."""

    def __init__(self, *, refuse_common: bool) -> None:
        self._refuse_common = refuse_common
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="passwords")
        self._decoy = _HASHER.hash(secrets.token_urlsafe(16))

    def require_good(self, password: str) -> None:
        """Raises AuthError for a new password that may not be."""
        check_password(password, refuse_common=self._refuse_common)

    async def hash(self, password: str) -> str:
        return await asyncio.get_running_loop().run_in_executor(self._threads, _HASHER.hash, password)

    async def matches(self, password: str, stored: str | None) -> bool:
        """Whether the password fits; with nothing stored (no such account) it works as hard and says no."""
        fits = await asyncio.get_running_loop().run_in_executor(self._threads, _verify, stored or self._decoy, password)
        return fits and stored is not None


def _verify(stored: str, password: str) -> bool:
    try:
        return _HASHER.verify(stored, password)
    except (VerifyMismatchError, VerificationError, InvalidHashError):
        return False
