"""A storm of deliveries on billing's webhook: many connections at once, each answer timed at the client."""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

_HEAD_END: Final = b"\r\n\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    payload: bytes
    signature: str


@dataclass(slots=True, kw_only=True)
class Outcome:
    """Answers by whether the delivery was `forged`, and how long each took."""

    genuine: Counter[int] = field(default_factory=Counter[int])
    forged: Counter[int] = field(default_factory=Counter[int])
    waits_ms: list[float] = field(default_factory=list[float])
    took_s: float = 0.0

    def percentile_ms(self, percent: float) -> float:
        ordered = sorted(self.waits_ms)
        return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]

    @property
    def per_s(self) -> float:
        return len(self.waits_ms) / self.took_s


async def storm(base_url: str, deliveries: Sequence[tuple[Delivery, bool]], *, at_once: int) -> Outcome:
    """Send all deliveries (`True` beside one: it is forged) over `at_once` connections, and wait for every answer.

    A client of a few lines over bare streams: a real one would cost more than the service under test.
    """
    outcome = Outcome()
    address = urlsplit(base_url)
    left = iter(deliveries)
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(at_once):
            group.create_task(_send(address.hostname or "", address.port or 80, left, outcome))
    outcome.took_s = time.perf_counter() - started
    return outcome


async def _send(host: str, port: int, left: Iterator[tuple[Delivery, bool]], outcome: Outcome) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        for delivery, is_forged in left:
            began = time.perf_counter()
            writer.write(
                b"POST /webhooks/stripe HTTP/1.1\r\nHost: billing\r\nContent-Type: application/json\r\n"
                b"Stripe-Signature: %b\r\nContent-Length: %d\r\n\r\n%b"
                % (delivery.signature.encode(), len(delivery.payload), delivery.payload)
            )
            head = await reader.readuntil(_HEAD_END)
            length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            outcome.waits_ms.append((time.perf_counter() - began) * 1000)
            (outcome.forged if is_forged else outcome.genuine)[int(head[9:12])] += 1
    finally:
        writer.close()
