"""Codes by time, none accepted twice. Pure."""

import hmac
from typing import Final

from pyotp.totp import TOTP

MAX_FACTORS: Final = 10
CHALLENGE_LIFETIME_S: Final = 300
MAX_ATTEMPTS: Final = 5
STEP_S: Final = 30


def matching_step(secret: str, code: str, *, now_s: float, last_step: int) -> int | None:
    """The time step whose code this is, of the current one and its neighbours; None if none, or one used before."""
    if len(code) != 6 or not (code.isascii() and code.isdigit()):  # noqa: PLR2004
        return None
    totp = TOTP(secret)
    current = int(now_s) // STEP_S
    for step in (current, current - 1, current + 1):
        if step > last_step and hmac.compare_digest(totp.generate_otp(step), code):
            return step
    return None


def provisioning_uri(secret: str, *, account: str, issuer: str) -> str:
    return TOTP(secret).provisioning_uri(name=account, issuer_name=issuer)
