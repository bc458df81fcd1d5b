"""Asking at the gateways as a patient client does: any of them, again under the same key, until the answer is sure."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from tests.faults.soak.books import Books, BrokenPromise

PATIENCE_S: Final = 20.0
"""For one answer: longer than the promise, so that a broken one is measured instead of cut off."""
GIVES_UP_AFTER_S: Final = 180.0
"""For one order. Nothing here lasts as long as that, so that it is a promise broken."""
_PAUSE_S: Final = 0.3
_IN_FLIGHT: Final = "gateway.idempotency_key_in_flight"


@dataclass(slots=True)
class Stopped:
    """Which gateways are, or were, stopped by a signal, and when: while that lasts they cannot answer in time."""

    spans: list[tuple[str, float, float]] = field(default_factory=list[tuple[str, float, float]])

    def between(self, url: str, since: float) -> bool:
        return any(url == stopped and until >= since for stopped, _, until in self.spans)


@dataclass(slots=True, kw_only=True)
class Door:
    gateways: list[str]
    api_key: str
    client: httpx.AsyncClient
    books: Books
    stopped: Stopped
    chance: random.Random

    async def ask(self, method: str, path: str, **content: Any) -> httpx.Response | None:
        """One request to one of the gateways; None if none of its processes was there to answer."""
        url, began = self.chance.choice(self.gateways), time.monotonic()
        headers = {"apikey": self.api_key, **content.pop("headers", {})}
        try:
            answer = await self.client.request(method, f"{url}{path}", headers=headers, **content)
        except httpx.TransportError:
            return None
        self.books.note(answer, time.monotonic() - began, is_excused=self.stopped.between(url, began))
        return answer

    async def surely(
        self,
        method: str,
        path: str,
        *,
        done: Collection[int] = (200,),
        again: Mapping[int, str] | None = None,
        **content: Any,
    ) -> httpx.Response:
        """Ask until the answer has one of the statuses `done`. `again` are answers that also mean: later."""
        began, was_unknown, is_write = time.monotonic(), False, method != "GET"
        later = {409: _IN_FLIGHT, **(again or {})}
        while time.monotonic() - began < GIVES_UP_AFTER_S:
            answer = await self.ask(method, path, **content)
            if answer is None or answer.status_code == 503:
                if is_write and not was_unknown:
                    was_unknown, self.books.ambiguous = True, self.books.ambiguous + 1
            elif answer.status_code in done:
                self.books.recovered += was_unknown
                return answer
            elif later.get(answer.status_code, "?") != code_of(answer):
                raise BrokenPromise(f"{method} {path} answered {answer.status_code}: {answer.text[:300]}")
            await asyncio.sleep(_PAUSE_S)
        raise BrokenPromise(f"{method} {path}: no sure answer within {GIVES_UP_AFTER_S:g} s")


def code_of(answer: httpx.Response) -> str:
    """Of our errors, and of those that are written as Supabase writes them."""
    try:
        body: dict[str, Any] = answer.json()
    except ValueError:
        return ""
    return str(body.get("code") or body.get("error_code") or "")


@asynccontextmanager
async def open_door(
    environment: Mapping[str, str], books: Books, stopped: Stopped, chance: random.Random
) -> AsyncGenerator[Door, None]:
    async with httpx.AsyncClient(timeout=PATIENCE_S, limits=httpx.Limits(max_connections=None)) as client:
        yield Door(
            gateways=environment["GATEWAY_URLS"].split(","),
            api_key=environment["NEXT_PUBLIC_SUPABASE_ANON_KEY"],
            client=client,
            books=books,
            stopped=stopped,
            chance=chance,
        )
