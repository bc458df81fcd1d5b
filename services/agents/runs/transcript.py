"""What a model has said in a round, and how much of it has been shown. No clock: times come in."""

from typing import Final

FLUSH_INTERVAL_S: Final = 0.05
FLUSH_CHARS: Final = 2_000


class Transcript:
    """`is_held_back`: nothing is shown before the whole stands, as with a plan that has to be validated first."""

    def __init__(self, *, is_held_back: bool) -> None:
        self._is_held_back = is_held_back
        self._said: list[str] = []
        self._unshown: list[str] = []
        self._unshown_chars = 0
        self._shown_at = float("-inf")

    def add(self, text: str) -> bool:
        """Take a piece; whether it is worth waking the writer for: the first one waiting, and too many of them."""
        text = _storable(text)
        if not text:
            return False
        self._said.append(text)
        if self._is_held_back:
            return False
        self._unshown.append(text)
        self._unshown_chars += len(text)
        return len(self._unshown) == 1 or self.is_full

    def replace(self, text: str) -> None:
        self._said[:] = [text]

    def clear(self) -> None:
        self._said.clear()

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be shown that no more should come."""
        return self._unshown_chars >= FLUSH_CHARS

    def is_due(self, *, now: float) -> bool:
        """The first piece at once, so that the user sees it begin; later ones gathered, so that rows stay few."""
        return bool(self._unshown) and (now - self._shown_at >= FLUSH_INTERVAL_S or self.is_full)

    @property
    def due_at(self) -> float:
        return self._shown_at + FLUSH_INTERVAL_S if self._unshown else float("inf")

    def show(self, *, now: float) -> str:
        """Hand out what waits to be shown; it waits no more."""
        text = "".join(self._unshown)
        self._unshown.clear()
        self._unshown_chars = 0
        self._shown_at = now
        return text

    def rest(self, *, is_whole: bool) -> str:
        """What is left to show at the end; of a text held back all of it, if it came to stand, or nothing."""
        if self._is_held_back:
            return self.text if is_whole else ""
        return "".join(self._unshown)

    @property
    def text(self) -> str:
        return "".join(self._said)

    @property
    def seen(self) -> str | None:
        """What the user was shown by the end; nothing of a plan that never came to stand."""
        return None if self._is_held_back else self.text or None


def _storable(text: str) -> str:
    """Without what PostgreSQL's text cannot hold: NUL, and halves of surrogate pairs."""
    return text.replace("\0", "").encode(errors="replace").decode()
