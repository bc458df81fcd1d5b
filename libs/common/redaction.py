"""What must not be shown is taken out: secrets of what is logged, and personal data of what leaves the house."""

import re
from collections.abc import Mapping
from typing import Any, Final, cast

# The net below the rule "log no secrets": what looks like one is masked wherever it turns up.
_SECRET_KEYS: Final = re.compile(r"password|secret|token|authorization|apikey|api_key|cookie|signature", re.IGNORECASE)
_SECRET_VALUES: Final = re.compile(
    r"(sk|rk|whsec|vc)_[A-Za-z0-9_]{6,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*|//[^/\s:@]+:[^/\s@]+@"
)
# Error reports leave the house: there no address of a person may be either.
_PERSONAL_VALUES: Final = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}")
_PERSONAL_KEYS: Final = re.compile(r"email|phone|ip_address|username|remote_addr", re.IGNORECASE)


def scrub(value: Any) -> Any:
    """As `redact`, and personal data besides."""
    if isinstance(value, str):
        return _PERSONAL_VALUES.sub("[redacted]", redact_text(value))
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {
            key: "[redacted]"
            if item and (_SECRET_KEYS.search(str(key)) or _PERSONAL_KEYS.search(str(key)))
            else scrub(item)
            for key, item in items
        }
    if isinstance(value, list | tuple):
        return [scrub(item) for item in cast("list[Any]", value)]
    return value


def redact_text(value: str) -> str:
    return _SECRET_VALUES.sub("[redacted]", value)


def redact(value: Any) -> Any:
    """Mask secrets by the name of their key or by their shape, at any depth."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: "[redacted]" if _SECRET_KEYS.search(str(key)) and item else redact(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [redact(item) for item in cast("list[Any]", value)]
    return value
