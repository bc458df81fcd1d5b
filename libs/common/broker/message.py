"""What is on the wire: one event, or several of one type in CloudEvents' JSON batch format.

The broker's work, and its driver's, is per message. A burst of events therefore leaves in few, each an array of the
envelopes that would otherwise have gone alone; to whoever handles them they are events as before, each with an id, a
trace, an inbox row and an outcome of its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Self, cast

import orjson

from libs.common.events import BATCH_CONTENT_TYPE, EncodedEvent

MOST_EVENTS: Final = 32
MOST_BYTES: Final = 64 * 1024
"""Of several together; an event that is larger goes alone. With the length of a queue it bounds what a queue keeps."""
BREAK_UP_AT: Final = 3
"""So many deliveries that nobody lived to acknowledge mean that an event in it may be deadly."""
_DELIVERIES: Final = "x-delivery-count"


@dataclass(slots=True)
class Parcel:
    """A message as the broker counts it, acked when nothing in it is open. `tag` names it on the channel it came by.

    `deliveries` is how often it was delivered before and came back.
    """

    tag: int
    deliveries: int = 0
    open: int = 1


class Message(NamedTuple):
    """One event of a parcel, not yet looked at. `content` are its bytes, or its envelope if it came with others."""

    parcel: Parcel
    message_id: str | None
    headers: Mapping[str, Any]
    content: bytes | Mapping[str, Any]

    @classmethod
    def whole(cls, tag: int, message_id: str | None, headers: Mapping[str, Any], body: bytes) -> Self:
        """As it came."""
        deliveries = headers.get(_DELIVERIES, 0)
        return cls(Parcel(tag, deliveries if isinstance(deliveries, int) else 0), message_id, headers, body)

    @property
    def body(self) -> bytes:
        """To send it on by itself."""
        return self.content if isinstance(self.content, bytes) else orjson.dumps(self.content)

    @property
    def came_with_others(self) -> bool:
        return not isinstance(self.content, bytes)


def unpack(message: Message) -> Sequence[Message]:
    """The events of what came, in their order; what is no batch of envelopes stays whole, to be parked as it is.

    By its first byte, not by its content type, so that a batch is one however it came here.
    """
    body = message.content
    if not isinstance(body, bytes) or not body.startswith(b"["):
        return [message]
    try:
        envelopes: Any = orjson.loads(body)
    except orjson.JSONDecodeError:
        return [message]
    if not envelopes or not all(isinstance(envelope, dict) for envelope in envelopes):
        return [message]
    message.parcel.open = len(envelopes)
    return [_part(message.parcel, envelope) for envelope in cast("list[dict[str, Any]]", envelopes)]


def _part(parcel: Parcel, envelope: Mapping[str, Any]) -> Message:
    event_id, traceparent = envelope.get("id"), envelope.get("traceparent")
    headers = {"traceparent": traceparent} if isinstance(traceparent, str) else dict[str, str]()
    return Message(parcel, event_id if isinstance(event_id, str) else None, headers, envelope)


def is_suspect(message: Message) -> bool:
    """Whether it came with others so often that it should go alone."""
    return message.came_with_others and message.parcel.deliveries >= BREAK_UP_AT


def batches_of(events: Sequence[EncodedEvent], *, most: int = MOST_EVENTS) -> list[list[int]]:
    """Which of these go together, by their places: events of one type, in their order."""
    batches: list[list[int]] = []
    last_of_type: dict[str, list[int]] = {}
    sizes = dict[str, int]()
    for place, event in enumerate(events):
        batch, size = last_of_type.get(event.type), len(event.body)
        if batch is None or len(batch) == most or sizes[event.type] + size > MOST_BYTES:
            batch = last_of_type[event.type] = []
            batches.append(batch)
            sizes[event.type] = 0
        batch.append(place)
        sizes[event.type] += size
    return batches


def pack(events: Sequence[EncodedEvent]) -> tuple[bytes, str]:
    """The body and the content type of a message with these."""
    return b"[" + b",".join(event.body for event in events) + b"]", BATCH_CONTENT_TYPE
