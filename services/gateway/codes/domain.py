"""Rules of one-time codes, PKCE and redirects. Pure; times come from the database."""

import base64
import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import SplitResult, quote, urlencode, urlsplit
from uuid import UUID

from services.gateway.auth.domain import AuthError, validation_failed

MAX_ATTEMPTS: Final = 5
CODE_LIFETIME_S: Final = 600
FLOW_LIFETIME_S: Final = 300
MAX_MAILS_AN_HOUR: Final = 5


class Kind(StrEnum):
    """What a code proves. A user has one of each at most; a new one replaces the old."""

    CONFIRMATION = "confirmation"
    RECOVERY = "recovery"
    EMAIL_CHANGE_NEW = "email_change_new"
    EMAIL_CHANGE_CURRENT = "email_change_current"
    REAUTHENTICATION = "reauthentication"


LINK_LIFETIME_S: Final[Mapping[Kind, int]] = {
    Kind.CONFIRMATION: 86_400,
    Kind.RECOVERY: 3_600,
    Kind.EMAIL_CHANGE_NEW: 86_400,
    Kind.EMAIL_CHANGE_CURRENT: 86_400,
    Kind.REAUTHENTICATION: CODE_LIFETIME_S,
}
KINDS_OF_TYPE: Final[Mapping[str, Sequence[Kind]]] = {
    "signup": (Kind.CONFIRMATION,),
    "invite": (Kind.CONFIRMATION,),
    "recovery": (Kind.RECOVERY,),
    "magiclink": (Kind.RECOVERY,),
    "email": (Kind.CONFIRMATION, Kind.RECOVERY),
    "email_change": (Kind.EMAIL_CHANGE_NEW, Kind.EMAIL_CHANGE_CURRENT),
}
FIRST_HALF: Final = "Confirmation link accepted. Please proceed to confirm link sent to the other email"


def kinds_of(verification_type: str) -> Sequence[Kind]:
    kinds = KINDS_OF_TYPE.get(verification_type)
    if kinds is None:
        raise validation_failed("Invalid email verification type")
    return kinds


def otp_expired() -> AuthError:
    """One answer for wrong, used and expired codes and for addresses that are nobody's."""
    return AuthError(403, "otp_expired", "Token has expired or is invalid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """What goes into the mail and nowhere else: the link's token of 224 random bits, and six digits."""

    token: str
    code: str


def new_secrets(*, is_pkce: bool) -> Issued:
    # Hexadecimal: no part of a token can be mistaken for the six digits by whoever reads a mail with a pattern.
    return Issued(token=("pkce_" if is_pkce else "") + secrets.token_hex(28), code=f"{secrets.randbelow(10**6):06d}")


def token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def code_hash(user_id: UUID, kind: str, code: str) -> bytes:
    return hashlib.sha256(b"%s|%s|%s" % (user_id.bytes, kind.encode(), code.encode("utf-8", "surrogatepass"))).digest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Redeemed:
    user_id: UUID
    kind: Kind
    email: str
    redirect_to: str | None
    flow_state_id: UUID | None


# PKCE (RFC 7636) -------------------------------------------------------------------------------------------------

_CHALLENGE: Final = re.compile(r"[A-Za-z0-9._~-]{43,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """A sign-in begun by a client that will prove, when it exchanges the code, that it is the one that began it."""

    challenge: str
    method: str


def read_flow(challenge: str | None, method: str | None) -> Flow | None:
    """Both or none. `plain` is refused: it protects against nobody who can read the request."""
    if not challenge and not method:
        return None
    if not challenge or not method:
        raise validation_failed("PKCE flow requires code_challenge_method and code_challenge")
    if not _CHALLENGE.fullmatch(challenge):
        raise validation_failed("code challenge has to be between 43 and 128 characters of the permitted set")
    if method.lower() != "s256":
        raise validation_failed("code_challenge_method must be s256")
    return Flow(challenge=challenge, method="s256")


def fits_challenge(verifier: str, challenge: str) -> bool:
    digest = hashlib.sha256(verifier.encode("utf-8", "surrogatepass")).digest()
    return hmac.compare_digest(base64.urlsafe_b64encode(digest).rstrip(b"="), challenge.encode())


# Redirects -------------------------------------------------------------------------------------------------------


class Redirects:
    """Where a link may lead: the site itself, what the operator listed, else always the site. Never an error."""

    def __init__(self, *, site_url: str, allowed: Sequence[str] = ()) -> None:
        self.site_url = site_url
        self._site = urlsplit(site_url)
        self._patterns = [_glob(pattern) for pattern in allowed]

    def choose(self, asked: str | None, *, referer: str | None = None) -> str:
        for candidate in (asked, referer):
            if candidate and self._is_allowed(candidate):
                return candidate
        return self.site_url

    def _is_allowed(self, url: str) -> bool:
        # What browsers and parsers read differently is refused before anything is parsed.
        if len(url) > 2000 or any(c <= " " or c in '\\"<>' or c == "\x7f" for c in url):  # noqa: PLR2004
            return False
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return False
        if not parts.scheme or not parts.hostname or "@" in parts.netloc:
            return False
        if self._is_site(parts, port):
            return True
        if parts.scheme in {"http", "https"} and _is_foreign_ip(parts.hostname):
            return False
        return any(pattern.fullmatch(url.partition("#")[0]) for pattern in self._patterns)

    def _is_site(self, parts: SplitResult, port: int | None) -> bool:
        site = self._site
        if parts.scheme != site.scheme:
            return False
        if _is_loopback(site.hostname or "") and _is_loopback(parts.hostname or ""):
            return True
        return parts.hostname == site.hostname and (port or _port(parts)) == (site.port or _port(site))


def _port(parts: SplitResult) -> int | None:
    return {"http": 80, "https": 443}.get(parts.scheme)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_foreign_ip(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _glob(pattern: str) -> re.Pattern[str]:
    """`*` and `?` stop at `.` and `/`, `**` does not: a wildcard in a host never spans a label."""
    parts = re.split(r"(\*\*|\*|\?)", pattern)
    regex = {"**": ".*", "*": "[^./]*", "?": "[^./]"}
    return re.compile("".join(regex.get(part, re.escape(part)) for part in parts))


def with_query(url: str, values: Mapping[str, str]) -> str:
    base, mark, fragment = url.partition("#")
    joint = "&" if "?" in base else "?"
    return f"{base}{joint}{urlencode(values)}{mark}{fragment}"


def with_fragment(url: str, values: Mapping[str, str]) -> str:
    """`sb` without a value marks the fragment as ours for clients."""
    return f"{url.partition('#')[0]}#{urlencode({**values, 'sb': ''}, quote_via=quote)}"
