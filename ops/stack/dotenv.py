"""The settings file: one NAME=value a line, quoted as for a shell; what a person wrote into it stays as it is."""

import re
import shlex
from collections.abc import Mapping

from ops.failure import Failure

_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)")


def parse(text: str, *, source: str = ".env") -> dict[str, str]:
    values: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        match = _LINE.fullmatch(stripped)
        if not match:
            raise Failure(f"{source}, line {number}: expected NAME=value. Mend or remove that line.")
        values[match[1]] = _value(match[2].strip(), f"{source}, line {number}")
    return values


def _value(written: str, place: str) -> str:
    try:
        words = shlex.split(written, comments=True)
    except ValueError as error:
        raise Failure(f"{place}: {error}. Put the value in single quotes.") from None
    if len(words) > 1:
        raise Failure(f"{place}: a value with spaces needs quotes round it.")
    return words[0] if words else ""


def line(name: str, value: str) -> str:
    return f"{name}={shlex.quote(value)}" if value else f"{name}="


def append(text: str, values: Mapping[str, str], *, comment: str) -> str:
    """The file with `values` added at its end; the last mention of a name is the one that counts."""
    if not values:
        return text
    gap = "" if not text else "\n" if text.endswith("\n") else "\n\n"
    return text + gap + "\n".join([f"# {comment}", *(line(name, value) for name, value in values.items())]) + "\n"


def replace(text: str, values: Mapping[str, str]) -> str:
    """The file with these values: each in the line that had the last word so far, or in a new one at the end."""
    lines, missing = text.splitlines(), dict(values)
    for number in range(len(lines) - 1, -1, -1):
        match = _LINE.fullmatch(lines[number].strip())
        if match and match[1] in missing:
            lines[number] = line(match[1], missing.pop(match[1]))
    return "\n".join([*lines, *(line(name, value) for name, value in missing.items())]) + "\n"
