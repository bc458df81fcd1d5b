"""The AsyncAPI document: what is published on the bus, one channel an event, and what the two streams tell."""

from collections.abc import Mapping
from typing import Any, Final

from libs.common.events import BATCH_CONTENT_TYPE, CATALOGUE, CONTENT_TYPE, Event

EXCHANGE: Final = "events"
RUN_EVENTS: Final = (
    "run.queued",
    "run.started",
    "run.delta",
    "run.tool",
    "run.usage",
    "run.succeeded",
    "run.failed",
    "run.cancelled",
    "run.timed_out",
)
USER_EVENTS: Final = (
    "entitlements.changed",
    "billing.payment_failed",
    "billing.invoice_paid",
    "usage.settled",
    "usage.threshold_reached",
    "run.started",
    "run.finished",
    "background_event.received",
)
_ENVELOPE: Final = {
    "type": "object",
    "required": ["specversion", "id", "type", "source", "time", "data"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": {"type": "string", "format": "uuid", "description": "Unique for ever; consumers deduplicate by it."},
        "source": {"type": "string"},
        "subject": {"type": "string"},
        "time": {"type": "string", "format": "date-time"},
        "datacontenttype": {"const": "application/json"},
        "traceparent": {"type": ["string", "null"]},
    },
}


def document(*, version: str) -> dict[str, Any]:
    """AsyncAPI 3.0."""
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for event in CATALOGUE.values():
        channels[event.type] = _channel(event)
        operations[f"publish {event.type}"] = {
            "action": "send",
            "channel": {"$ref": f"#/channels/{event.type}"},
            "summary": f"{event.owner()} publishes it, and nobody else may.",
        }
    channels["runStream"] = _stream("/v1/runs/{run_id}/events", RUN_EVENTS, "A run's events, resumable by number.")
    channels["userStream"] = _stream("/v1/events", USER_EVENTS, "What a user is told of, resumable by number.")
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Venture Companion events",
            "version": version,
            "description": "Events are CloudEvents 1.0 on the topic exchange `events`, delivered at least once; each "
            "consumer has a queue of its own for each event. Of a burst several of one type share a message, an array "
            f"of envelopes with the content type `{BATCH_CONTENT_TYPE}`. A new optional field keeps a version, "
            "anything else is a new type.",
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": channels,
        "operations": operations,
        "components": {"schemas": {"Envelope": _ENVELOPE}},
    }


def _channel(event: type[Event]) -> Mapping[str, Any]:
    message = {
        "name": event.type,
        "title": event.__name__,
        "summary": (event.__doc__ or "").strip().partition("\n")[0] if event.__doc__ != Event.__doc__ else "",
        "contentType": CONTENT_TYPE,
        "payload": {
            "allOf": [
                {"$ref": "#/components/schemas/Envelope"},
                {
                    "type": "object",
                    "properties": {"type": {"const": event.type}, "data": event.model_json_schema()},
                },
            ]
        },
    }
    return {
        "address": event.type,
        "messages": {event.__name__: message},
        "bindings": {"amqp": {"is": "routingKey", "exchange": {"name": EXCHANGE, "type": "topic", "durable": True}}},
    }


def _stream(address: str, names: tuple[str, ...], summary: str) -> Mapping[str, Any]:
    return {
        "address": address,
        "summary": f"{summary} Server-sent events: `event` is the name, `id` the number, `data` JSON.",
        "messages": {name: {"name": name, "contentType": "text/event-stream"} for name in names},
    }
