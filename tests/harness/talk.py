"""What services write to their standard output, caught in this process: every line, at their most talkative."""

import io
import logging
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import orjson

from libs.common.logs import configure_logging


class Talk:
    def __init__(self, stream: io.StringIO) -> None:
        self._stream = stream

    @property
    def text(self) -> str:
        return self._stream.getvalue()

    def lines(self) -> list[dict[str, Any]]:
        """Each line is one JSON object; anything else raises."""
        return [orjson.loads(line) for line in self.text.splitlines()]

    def said(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        return [
            line
            for line in self.lines()
            if line["event"] == event and all(line.get(name) == value for name, value in fields.items())
        ]


@contextmanager
def listening() -> Generator[Talk, None, None]:
    stream = io.StringIO()
    _speak("DEBUG")
    handler = logging.getLogger().handlers[0]
    assert isinstance(handler, logging.StreamHandler)
    handler.setStream(stream)  # pyright: ignore[reportUnknownMemberType] - generic in the stream's type
    try:
        yield Talk(stream)
    finally:
        _speak("WARNING")


def _speak(level: str) -> None:
    configure_logging(service="tests", level=level)
    # A logger keeps the level it was first used with; these are to be asked anew.
    for module in list(sys.modules.values()):
        if (getattr(module, "__name__", "") or "").startswith(("libs.", "services.")):
            kept: dict[str, Any] = getattr(getattr(module, "log", None), "__dict__", {})
            kept.pop("bind", None)
