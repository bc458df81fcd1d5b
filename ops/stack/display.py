"""Telling a person what happens, on standard error: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.status import Status


class Display:
    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)

    def say(self, text: str) -> None:
        self._console.print(escape(text))

    @contextmanager
    def waiting(self, task: str, names: Sequence[str] = ()) -> Generator["Waiting"]:
        with self._console.status(escape(task)) as status:
            yield Waiting(self, status, task, names)


class Waiting:
    """Things that get ready one by one while somebody watches."""

    def __init__(self, display: Display, status: Status, task: str, names: Sequence[str]) -> None:
        self._display, self._status, self._task = display, status, task
        self._left = list(names)
        self._began = time.monotonic()
        self._show()

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def ready(self, name: str) -> None:
        """Say that `name` is ready, if it is one of those that are waited for."""
        if name in self._left:
            self._left.remove(name)
            self._display.say(f"  {name} is ready after {self.seconds:.1f} s")
            self._show()

    def _show(self) -> None:
        self._status.update(escape(f"{self._task} {', '.join(self._left)}"))
