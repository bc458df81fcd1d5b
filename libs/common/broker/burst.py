"""Messages that leave in one write, and what the broker says of each: the driver's own way costs a task and a timer.

A message is published in three frames; here those of all messages of a burst are one piece of bytes, one write and so
one system call, and the confirms of all are awaited together.
"""

import asyncio
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, cast
from uuid import uuid4

from aiormq import Channel, spec
from aiormq.abc import ChannelFrame
from pamqp import encode, frame

from libs.common.events import CONTENT_TYPE

_HEADER: Final = struct.Struct(">BHIHHQH")
_BODY: Final = struct.Struct(">BHI")
_END: Final = b"\xce"
_BASIC: Final = 60
# Which properties a message has, as bits: content type, headers, delivery mode, message id.
_PROPERTIES: Final = 1 << 15 | 1 << 13 | 1 << 12 | 1 << 7
_PERSISTENT: Final = b"\x02"
_LONGEST_SHORT_STRING: Final = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Outgoing:
    """A persistent message and where it is to go. Without an id it gets one, by which a return is told apart."""

    exchange: str
    routing_key: str
    body: bytes
    message_id: str | None
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    content_type: str = CONTENT_TYPE

    def frames(self, channel_number: int, *, message_id: str, max_body: int) -> bytes:
        """As AMQP 0-9-1 puts it on the wire: method, header, body. Raises ValueError at an id or key too long."""
        properties = b"".join(
            (
                _content_type(self.content_type),
                encode.field_table(dict(self.headers)),
                _PERSISTENT,
                _short_string(message_id),
            )
        )
        size = len(self.body)
        header = _HEADER.pack(2, channel_number, len(properties) + 14, _BASIC, 0, size, _PROPERTIES)
        parts = [_publish_method(channel_number, self.exchange, self.routing_key), header, properties, _END]
        for start in range(0, size, max_body):
            piece = self.body[start : start + max_body]
            parts += (_BODY.pack(3, channel_number, len(piece)), piece, _END)
        return b"".join(parts)


def _short_string(text: str) -> bytes:
    encoded = text.encode()
    if len(encoded) > _LONGEST_SHORT_STRING:
        raise ValueError("ids, keys and names have at most 255 bytes in AMQP")
    return bytes((len(encoded),)) + encoded


_content_type: Final = lru_cache(8)(_short_string)


@lru_cache(1_024)
def _publish_method(channel_number: int, exchange: str, routing_key: str) -> bytes:
    """There are as many of these as types of events and queues."""
    _short_string(routing_key)
    return frame.marshal(spec.Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True), channel_number)


class Burst:
    """One write and its confirms.

    Afterwards `errors` has what went wrong, by place: a returned message its PublishError, a refused one its
    DeliveryError. `unanswered` has the places of which the broker said nothing.
    """

    def __init__(self, channel: Channel, messages: Sequence[Outgoing]) -> None:
        self._channel = channel
        self._ids = [message.message_id or uuid4().hex for message in messages]
        max_body = channel.max_content_size
        self._payload = b"".join(
            message.frames(channel.number, message_id=name, max_body=max_body)
            for message, name in zip(messages, self._ids, strict=True)
        )
        self._first_tag = 0
        self._settled: asyncio.Future[None] | None = None
        self.unanswered = set(range(len(messages)))
        self.errors: dict[int, BaseException] = {}

    async def send(self, *, timeout_s: float) -> BaseException | None:
        """Write, and wait for the broker's word on each; return what ended the channel meanwhile, if anything did.

        Raises what the driver raises, or TimeoutError, if nothing could be written.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        async with asyncio.timeout_at(deadline):
            settled = await self._write()
        await asyncio.wait((settled,), timeout=deadline - loop.time())
        return settled.exception() if settled.done() and not settled.cancelled() else None

    async def _write(self) -> "asyncio.Future[None]":
        channel = self._channel
        driver = cast("Any", channel)  # its types say less than it does
        # The driver's own lock: numbers are given in the order of the wire.
        async with channel.lock:
            self._first_tag = channel.delivery_tag + 1
            settled = self._settled = cast("asyncio.Future[None]", driver.create_future())  # fails with the channel
            for place, name in enumerate(self._ids):
                channel.delivery_tag += 1
                driver.confirmations[channel.delivery_tag] = _Confirmation(self, place)
                channel.message_id_delivery_tag[name] = channel.delivery_tag
            try:
                await driver.write_queue.put(ChannelFrame(payload=self._payload, should_close=False))
            except BaseException:
                # Not on the wire: the broker will count the next message where it would have counted this one.
                for place, name in enumerate(self._ids):
                    driver.confirmations.pop(self._first_tag + place, None)
                    self._forget_id(place, name)
                channel.delivery_tag = self._first_tag - 1
                settled.cancel()
                raise
        return settled

    def settle(self, place: int, error: BaseException | None) -> None:
        """The broker's word on one message: the first one counts, a return comes before its confirm."""
        self.unanswered.discard(place)
        self._forget_id(place, self._ids[place])
        if error is not None:
            self.errors[place] = error
        if not self.unanswered and self._settled is not None and not self._settled.done():
            self._settled.set_result(None)

    def _forget_id(self, place: int, name: str) -> None:
        if self._channel.message_id_delivery_tag.get(name) == self._first_tag + place:
            del self._channel.message_id_delivery_tag[name]


class _Confirmation:
    """Stands where the driver keeps a future for each message, whose every result is a turn of the loop."""

    __slots__ = ("_burst", "_place")

    def __init__(self, burst: Burst, place: int) -> None:
        self._burst = burst
        self._place = place

    def done(self) -> bool:
        return False  # the driver takes each out before it tells it the outcome

    def set_result(self, _confirm: object) -> None:
        self._burst.settle(self._place, None)

    def set_exception(self, error: BaseException) -> None:
        self._burst.settle(self._place, error)
