"""Reading a run's stream as a client does whose connection breaks: in pieces, each from behind the last frame seen."""

import secrets
from contextlib import suppress
from typing import Final

import httpx

TERMINAL: Final = (b"event: run.succeeded", b"event: run.failed", b"event: run.cancelled", b"event: run.timed_out")


class Reader:
    """Reads a run's stream in pieces through whichever gateway answers, as a client does that loses its connection."""

    def __init__(self, gateways: list[str], headers: dict[str, str], run_id: str) -> None:
        self._gateways = gateways
        self._headers = headers
        self.run_id = run_id
        self.frames: list[bytes] = []
        self.cuts = 0

    @property
    def has_ended(self) -> bool:
        return bool(self.frames) and any(it in self.frames[-1] for it in TERMINAL)

    async def read_some(self, frames: int) -> None:
        """Up to so many frames behind the last one, then hang up. Whatever breaks the connection is a cut, too."""
        self.cuts += 1
        gateway = secrets.choice(self._gateways)
        with suppress(httpx.HTTPError):
            async with (
                httpx.AsyncClient(timeout=20) as client,
                client.stream("GET", f"{gateway}/v1/runs/{self.run_id}/events", headers=self._resumed()) as answer,
            ):
                if answer.status_code == 200:
                    await self._take(answer, frames)

    def _resumed(self) -> dict[str, str]:
        return {**self._headers, **({"Last-Event-ID": event_id(self.frames[-1])} if self.frames else {})}

    async def _take(self, answer: httpx.Response, wanted: int) -> None:
        rest = b""
        async for chunk in answer.aiter_raw():
            *whole, rest = (rest + chunk).split(b"\n\n")
            for frame in whole:
                if b"id: " in frame:  # a heartbeat is no frame
                    self.frames.append(frame)
                    wanted -= 1
                if wanted == 0 or self.has_ended:
                    return


def event_id(frame: bytes) -> str:
    return next(it for it in frame.split(b"\n") if it.startswith(b"id: ")).removeprefix(b"id: ").decode()
