"""The base of everything a client sends: pydantic alone, so that pure modules may say what an input is."""

from typing import Any, cast

from pydantic import BaseModel, ConfigDict, model_validator


class Input(BaseModel):
    """A request body: unknown fields are refused, so that a misspelt one is told instead of ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _storable_text(cls, body: Any) -> Any:
        """Refuse, before anything is held or written, text that PostgreSQL or UTF-8 cannot carry."""
        if _has_unstorable_text(body):
            raise ValueError("Text must not contain NUL characters or lone surrogates")
        return body


def _has_unstorable_text(value: Any) -> bool:
    if isinstance(value, str):
        return "\x00" in value or not _is_utf8(value)
    if isinstance(value, dict):
        return any(_has_unstorable_text(part) for pair in cast("dict[Any, Any]", value).items() for part in pair)
    if isinstance(value, list):
        return any(_has_unstorable_text(part) for part in cast("list[Any]", value))
    return False


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
