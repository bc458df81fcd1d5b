"""Rules of sign-in: addresses, passwords, refresh-token families. Pure; times come from the database."""

import base64
import hashlib
import hmac
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any, Final
from uuid import UUID

from libs.common.clock import iso_micros
from services.gateway.auth.common_passwords import is_common

MIN_PASSWORD_LENGTH: Final = 8
MAX_PASSWORD_LENGTH: Final = 128
MAX_EMAIL_LENGTH: Final = 254
# Linear by construction: no nested quantifiers, one @ and a dotted host.
_EMAIL: Final = re.compile(r"[^\s@\"(),:;<>\[\]\\]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})+")


class AuthError(Exception):
    """A refusal in the shape auth-js understands: a stable code, a status below 500, a message for people."""

    def __init__(self, status: int, code: str, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.fields: Mapping[str, Any] = fields


def validation_failed(message: str) -> AuthError:
    return AuthError(400, "validation_failed", message)


def email_exists() -> AuthError:
    return AuthError(422, "email_exists", "A user with this email address has already been registered")


def normalise_email(email: str) -> str:
    """Lower-case and check an address; raises AuthError. Accounts are found case-insensitively by the result."""
    address = email.strip().lower()
    if len(address) > MAX_EMAIL_LENGTH or not _EMAIL.fullmatch(address):
        raise validation_failed("Unable to validate email address: invalid format")
    return address


def check_password(password: str, *, refuse_common: bool) -> None:
    """Length is the rule (ASVS 5.0 v6.2): no composition rules, no truncation. Checked before any hashing."""
    if len(password) < MIN_PASSWORD_LENGTH:
        raise AuthError(
            422,
            "weak_password",
            f"Password should be at least {MIN_PASSWORD_LENGTH} characters.",
            weak_password={"reasons": ["length"]},
        )
    if len(password) > MAX_PASSWORD_LENGTH:
        raise validation_failed(f"Password cannot be longer than {MAX_PASSWORD_LENGTH} characters")
    if "\x00" in password:
        raise validation_failed("Password must not contain NUL characters")
    if refuse_common and is_common(password):
        raise AuthError(
            422,
            "weak_password",
            "Password is known to be weak and easy to guess, please choose a different one.",
            weak_password={"reasons": ["pwned"]},
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """A row of auth.users without what never leaves it."""

    id: UUID
    email: str | None
    email_confirmed_at: datetime | None
    last_sign_in_at: datetime | None
    confirmation_sent_at: datetime | None
    invited_at: datetime | None
    recovery_sent_at: datetime | None
    banned_until: datetime | None
    app_metadata: Mapping[str, Any]
    user_metadata: Mapping[str, Any]
    is_anonymous: bool
    created_at: datetime
    updated_at: datetime
    phone: str | None = None
    phone_confirmed_at: datetime | None = None
    email_change: str | None = None
    email_change_sent_at: datetime | None = None
    email_change_confirms_left: int = 0
    reauthentication_sent_at: datetime | None = None
    deleted_at: datetime | None = None
    identities: tuple[Mapping[str, Any], ...] = ()
    factors: tuple[Mapping[str, Any], ...] = ()

    @property
    def is_confirmed(self) -> bool:
        return self.email_confirmed_at is not None or self.phone_confirmed_at is not None

    def is_banned(self, now: datetime) -> bool:
        return self.banned_until is not None and self.banned_until > now

    def to_json(self) -> dict[str, Any]:
        """The contract's User object: times that are not set are left out, texts that are not set are empty."""
        times = {
            "email_confirmed_at": self.email_confirmed_at,
            "phone_confirmed_at": self.phone_confirmed_at,
            "confirmed_at": self.email_confirmed_at or self.phone_confirmed_at,
            "last_sign_in_at": self.last_sign_in_at,
            "confirmation_sent_at": self.confirmation_sent_at,
            "invited_at": self.invited_at,
            "recovery_sent_at": self.recovery_sent_at,
            "email_change_sent_at": self.email_change_sent_at,
            "reauthentication_sent_at": self.reauthentication_sent_at,
            "banned_until": self.banned_until,
            "deleted_at": self.deleted_at,
        }
        optional = {"new_email": self.email_change, "factors": [dict(factor) for factor in self.factors]}
        return {
            "id": str(self.id),
            "aud": "authenticated",
            "role": "authenticated",
            "email": self.email or "",
            "phone": self.phone or "",
            **{name: value for name, value in optional.items() if value},
            **{name: iso_micros(at) for name, at in times.items() if at is not None},
            "app_metadata": dict(self.app_metadata),
            "user_metadata": dict(self.user_metadata),
            "identities": [dict(identity) for identity in self.identities],
            "created_at": iso_micros(self.created_at),
            "updated_at": iso_micros(self.updated_at),
            "is_anonymous": self.is_anonymous,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """One refresh-token family. The counter numbers its active token; the key makes tokens unforgeable."""

    id: UUID
    user_id: UUID
    aal: str
    amr: tuple[Mapping[str, Any], ...]
    refresh_key: bytes
    refresh_counter: int
    refreshed_at: datetime | None


_TOKEN: Final = struct.Struct(">B16sQ")
_TOKEN_VERSION: Final = 2
_MAC_BYTES: Final = 16


def refresh_token_of(session: Session) -> str:
    """The session's active refresh token: nothing of it is stored but the counter and the key."""
    body = _TOKEN.pack(_TOKEN_VERSION, session.id.bytes, session.refresh_counter)
    return base64.urlsafe_b64encode(body + _mac(session.refresh_key, body)).decode().rstrip("=")


def _mac(key: bytes, body: bytes) -> bytes:
    return hmac.new(key, body, hashlib.sha256).digest()[:_MAC_BYTES]


@dataclass(frozen=True, slots=True, kw_only=True)
class PresentedToken:
    """A refresh token as it came: whose session it claims, which number; genuine only if `is_genuine` says so."""

    session_id: UUID
    counter: int
    body: bytes
    mac: bytes

    def is_genuine(self, session: Session) -> bool:
        return hmac.compare_digest(self.mac, _mac(session.refresh_key, self.body))


def read_refresh_token(token: str) -> PresentedToken | None:
    """Take a token apart; None if it is not one of ours by its form."""
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    except ValueError:
        return None
    if len(raw) != _TOKEN.size + _MAC_BYTES:
        return None
    body, mac = raw[: _TOKEN.size], raw[_TOKEN.size :]
    version, session_id, counter = _TOKEN.unpack(body)
    if version != _TOKEN_VERSION:
        return None
    return PresentedToken(session_id=UUID(bytes=session_id), counter=counter, body=body, mac=mac)


class RefreshVerdict(Enum):
    ROTATE = "rotate"
    """The active token: number the next one."""
    RETURN_ACTIVE = "return_active"
    """A token just replaced: the client missed the answer or asked twice at once. The same active token again."""
    REUSED = "reused"
    """An older token: someone else has had it. The whole family ends."""


def judge_refresh(
    *, active: int, presented: int, refreshed_at: datetime | None, now: datetime, reuse_interval: timedelta
) -> RefreshVerdict:
    """Supabase Auth's second-generation rules: the parent of the active token is always good for the active one."""
    if presented == active:
        return RefreshVerdict.ROTATE
    if presented == active - 1:
        return RefreshVerdict.RETURN_ACTIVE
    if presented < active and refreshed_at is not None and now - refreshed_at <= reuse_interval:
        return RefreshVerdict.RETURN_ACTIVE
    return RefreshVerdict.REUSED
