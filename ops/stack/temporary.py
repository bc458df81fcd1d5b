"""A stack for one test run: its own ports, data and secrets, gone with the block that opened it."""

from collections.abc import Generator
from contextlib import contextmanager

from ops.engines.throwaway import own_home
from ops.home import Home
from ops.stack.display import Display
from ops.stack.stack import Stack


@contextmanager
def temporary_stack(*, display: Display | None = None) -> Generator[Stack]:
    """A stack that is not up yet. What a run that was killed left running is stopped by the next one."""
    with own_home(None, parent=Home.of().path / "stacks", end=_end) as home:
        yield Stack(home.path, display=display)


def _end(home: Home) -> None:
    Stack(home.path).down()
