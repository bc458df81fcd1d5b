"""What is put on the wire by hand is what the driver's own reader takes for the same message."""

from typing import Any

import pytest
from aiormq import spec
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from libs.common.broker.burst import Outgoing
from libs.common.events import CONTENT_TYPE

MAX_BODY = 1_000


def on_the_wire(message: Outgoing, *, message_id: str = "an-id") -> list[Any]:
    left, frames = message.frames(7, message_id=message_id, max_body=MAX_BODY), list[Any]()
    while left:
        size, channel, one = frame.unmarshal(left)
        assert channel == 7
        frames.append(one)
        left = left[size:]
    return frames


def a_message(body: bytes = b"{}", **headers: Any) -> Outgoing:
    return Outgoing(exchange="events", routing_key="agents.x.v1", body=body, message_id=None, headers=headers)


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-1-2-01", "x-attempt": 3}, {"x-parked-error": "ü" * 500}])
def test_a_message_is_read_as_it_was_meant(headers: dict[str, Any]) -> None:
    publish, header, body = on_the_wire(a_message(b'{"a": 1}', **headers), message_id="ü-1")
    assert isinstance(publish, spec.Basic.Publish)
    assert (publish.exchange, publish.routing_key, publish.mandatory) == ("events", "agents.x.v1", True)
    assert isinstance(header, ContentHeader)
    properties = header.properties
    assert (properties.content_type, properties.delivery_mode, properties.message_id) == (CONTENT_TYPE, 2, "ü-1")
    assert (properties.headers or {}) == headers
    assert header.body_size == 8
    assert isinstance(body, ContentBody)
    assert body.value == b'{"a": 1}'


@pytest.mark.parametrize(("size", "pieces"), [(0, 0), (1, 1), (MAX_BODY, 1), (MAX_BODY + 1, 2), (3 * MAX_BODY, 3)])
def test_a_body_is_cut_into_frames_that_the_connection_allows(size: int, pieces: int) -> None:
    _, header, *bodies = on_the_wire(a_message(b"x" * size))
    assert header.body_size == size
    assert [len(body.value) <= MAX_BODY for body in bodies] == [True] * pieces
    assert b"".join(body.value for body in bodies) == b"x" * size


def test_what_amqp_has_no_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        on_the_wire(a_message(), message_id="x" * 256)
    with pytest.raises(ValueError, match="255"):
        on_the_wire(Outgoing(exchange="events", routing_key="x" * 256, body=b"", message_id=None))
