"""Messages are CloudEvents 1.0 in structured JSON mode (https://github.com/cloudevents/spec, json-format.md)."""

import re
from datetime import UTC, datetime
from typing import Any, Final

import jsonschema
import orjson
import pytest

from libs.common.broker.lane import parse
from libs.common.events import CATALOGUE, CONTENT_TYPE, Event, MalformedEvent
from libs.common.outbox import OutboxRow
from tests.builders import an_event
from tests.contracts.snapshots import schema_of

WRITTEN_AT: Final = datetime(2026, 11, 23, 12, 30, 15, 123456, tzinfo=UTC)
TRACEPARENT: Final = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
CLOUD_EVENT: Final = {
    "type": "object",
    "required": ["specversion", "id", "source", "type"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "minLength": 1},
        "source": {"type": "string", "minLength": 1, "pattern": r"^\S+$"},
        "type": {"type": "string", "minLength": 1},
        "subject": {"type": "string", "minLength": 1},
        "time": {"type": "string", "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)$"},
        "datacontenttype": {"const": "application/json"},
        "data": {"type": "object"},
    },
}
EVENTS: Final = [pytest.param(event, id=name) for name, event in CATALOGUE.items()]


def message(event: Event, *, traceparent: str | None = TRACEPARENT) -> bytes:
    """The body the relay of the event's owner sends."""
    row = OutboxRow(
        id=event.event_id,
        type=event.type,
        subject=event.subject,
        data=event.model_dump(mode="json"),
        traceparent=traceparent,
        created_at=WRITTEN_AT,
        attempts=1,
    )
    return row.body(event.owner())


@pytest.mark.parametrize("event_class", EVENTS)
def test_a_message_is_a_cloud_event_whose_data_fits_its_reviewed_schema(event_class: type[Event]) -> None:
    event = an_event(event_class)
    body: dict[str, Any] = orjson.loads(message(event))
    jsonschema.validate(body, CLOUD_EVENT)
    jsonschema.validate(body["data"], schema_of(event_class))
    assert (body["id"], body["type"], body["source"]) == (str(event.event_id), event_class.type, event_class.owner())
    assert body["time"] == "2026-11-23T12:30:15.123Z"


@pytest.mark.parametrize("event_class", EVENTS)
def test_names_of_attributes_are_what_the_specification_allows(event_class: type[Event]) -> None:
    names = orjson.loads(message(an_event(event_class)))
    assert all(re.fullmatch("[a-z0-9]{1,20}", name) for name in names)


@pytest.mark.parametrize("event_class", EVENTS)
def test_a_consumer_reads_what_was_written(event_class: type[Event]) -> None:
    event = an_event(event_class)
    read = parse(message(event, traceparent=None), expected=event_class)
    assert read.model_dump() == event.model_dump()
    assert read.event_id == event.event_id
    assert read.occurred_at == WRITTEN_AT.replace(microsecond=123000)


@pytest.mark.parametrize("attribute", ["id", "type", "source", "time", "data"])
def test_an_envelope_without_what_we_rely_on_is_refused(attribute: str) -> None:
    event_class = next(iter(CATALOGUE.values()))
    body = orjson.loads(message(an_event(event_class)))
    del body[attribute]
    with pytest.raises(MalformedEvent, match=attribute):
        parse(orjson.dumps(body), expected=event_class)


def test_an_event_of_another_type_is_refused() -> None:
    first, second, *_ = CATALOGUE.values()
    with pytest.raises(MalformedEvent, match="came to the queue of"):
        parse(message(an_event(first)), expected=second)


def test_messages_say_that_they_are_cloud_events() -> None:
    assert CONTENT_TYPE == "application/cloudevents+json"
