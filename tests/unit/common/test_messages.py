"""Events that share a message: which do, what the message looks like, and what is read of it."""

from typing import Any

import orjson
import pytest

from libs.common.broker.message import (
    BREAK_UP_AT,
    MOST_BYTES,
    MOST_EVENTS,
    Message,
    batches_of,
    is_suspect,
    pack,
    unpack,
)
from libs.common.events import EncodedEvent


def an_event(number: int, *, kind: str = "a", size: int = 0) -> EncodedEvent:
    body = orjson.dumps({"id": str(number), "type": kind, "traceparent": f"00-{number}", "data": {"text": "x" * size}})
    return EncodedEvent(str(number), kind, body, None)


def came(body: bytes, **headers: Any) -> Message:
    return Message.whole(7, "an-id", headers, body)


def test_events_of_one_type_go_together_in_their_order() -> None:
    events = [an_event(number, kind=kind) for number, kind in enumerate("abacab")]
    assert batches_of(events) == [[0, 2, 4], [1, 5], [3]]


@pytest.mark.parametrize("most", [1, 7, MOST_EVENTS])
def test_no_message_has_more_events_than_are_allowed(most: int) -> None:
    batches = batches_of([an_event(number) for number in range(100)], most=most)
    assert [place for batch in batches for place in batch] == list(range(100))
    assert {len(batch) for batch in batches[:-1]} == {most}


def test_what_is_large_goes_alone_and_what_follows_it_starts_anew() -> None:
    sizes = [10, MOST_BYTES, 10, MOST_BYTES // 2, MOST_BYTES // 2 - 1_000, 2_000]
    events = [an_event(number, size=size) for number, size in enumerate(sizes)]
    assert batches_of(events) == [[0], [1], [2, 3, 4], [5]]


def test_each_event_is_read_as_if_it_had_come_alone() -> None:
    events = [an_event(number) for number in range(3)]
    body, content_type = pack(events)
    assert content_type == "application/cloudevents-batch+json"
    parts = unpack(came(body))
    assert [part.message_id for part in parts] == ["0", "1", "2"]
    assert [part.headers for part in parts] == [{"traceparent": f"00-{number}"} for number in range(3)]
    assert [part.body for part in parts] == [event.body for event in events]
    assert {part.parcel.open for part in parts} == {3}
    assert len({id(part.parcel) for part in parts}) == 1


@pytest.mark.parametrize("body", [b'{"id": "1"}', b"", b"[", b"[]", b"[1]", b'[{"id": "1"}, 2]', b"\xff"])
def test_what_is_no_batch_stays_whole(body: bytes) -> None:
    message = came(body, traceparent="00-1")
    assert unpack(message) == [message]
    assert message.parcel.open == 1
    assert message.body == body


def test_an_envelope_without_an_id_has_none() -> None:
    (part,) = unpack(came(b'[{"id": 5}]'))
    assert (part.message_id, part.headers, part.body) == (None, {}, b'{"id":5}')


@pytest.mark.parametrize("deliveries", [0, BREAK_UP_AT - 1, BREAK_UP_AT, "many"])
def test_only_what_came_back_often_and_with_others_is_suspect(deliveries: object) -> None:
    body, _ = pack([an_event(1), an_event(2)])
    expected = deliveries == BREAK_UP_AT
    assert [is_suspect(part) for part in unpack(came(body, **{"x-delivery-count": deliveries}))] == [expected] * 2
    alone = came(an_event(1).body, **{"x-delivery-count": deliveries})
    assert not is_suspect(alone)
