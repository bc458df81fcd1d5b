"""The base of everything a client sends: pydantic alone, so that pure modules may say what an input is."""

from typing import Any, Final, cast

from pydantic import BaseModel, ConfigDict, model_validator

MAX_DEPTH: Final = 100
MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**63 - 1


class Input(BaseModel):
    """A request body: unknown fields are refused, so that a misspelt one is told instead of ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _storable(cls, body: Any) -> Any:
        """Refuse it before anything is held or written."""
        return require_storable(body)


def require_storable(body: Any) -> Any:
    """The body as it is. Raises ValueError for what PostgreSQL, UTF-8 or our own JSON cannot carry."""
    if not _is_storable(body, depth=0):
        raise ValueError(
            "Text must not contain NUL characters or lone surrogates, whole numbers must fit into 64 bits, "
            f"and nothing may be nested deeper than {MAX_DEPTH} levels"
        )
    return body


def _is_storable(value: Any, *, depth: int) -> bool:
    if isinstance(value, str):
        return "\x00" not in value and (value.isascii() or _is_utf8(value))
    if isinstance(value, int):
        return MIN_INTEGER <= value <= MAX_INTEGER
    if isinstance(value, dict | list) and depth == MAX_DEPTH:
        return False
    if isinstance(value, dict):
        pairs = cast("dict[Any, Any]", value).items()
        return all(_is_storable(part, depth=depth + 1) for pair in pairs for part in pair)
    if isinstance(value, list):
        return all(_is_storable(part, depth=depth + 1) for part in cast("list[Any]", value))
    return True


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
