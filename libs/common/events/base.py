"""The shape of every event: a frozen fact with an explicit type, carried in a CloudEvents 1.0 JSON envelope."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, NamedTuple, Self
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema

from libs.common.errors import Invalid
from libs.common.ids import new_id

CONTENT_TYPE = "application/cloudevents+json"
BATCH_CONTENT_TYPE = "application/cloudevents-batch+json"


class MalformedEvent(Invalid):
    """The message is no event of ours: parked with this as its reason, never retried."""

    code = "events.malformed"


class Event(BaseModel):
    """A fact that happened. Subclasses declare `type` as `owner.fact.vN`, identifiers, and the facts that changed.

    Consumers ignore unknown fields, so an optional field may be added under the same version; any other change is a
    new class with the next version. Money is integer minor or micro units with the unit in the name, never a float.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    type: ClassVar[str]
    measures: ClassVar[tuple[str, ...]] = ()
    """Fields with amounts whose sums are worth a metric."""

    event_id: SkipJsonSchema[UUID] = Field(default_factory=new_id, exclude=True)
    """Unique for ever; consumers deduplicate by it. Travels as the envelope's `id`."""
    occurred_at: SkipJsonSchema[datetime | None] = Field(default=None, exclude=True)
    """The database's clock when the outbox row was written; None until then. Travels as `time`."""
    traceparent: SkipJsonSchema[str | None] = Field(default=None, exclude=True)
    """The trace of whoever caused it, for what is begun because of it; None until it is sent."""

    @property
    def subject(self) -> str:
        """What the event is about, for people who search; by default the user."""
        return str(getattr(self, "user_id", ""))

    @classmethod
    def owner(cls) -> str:
        return cls.type.partition(".")[0]

    @classmethod
    def from_envelope(cls, envelope: "Envelope") -> Self:
        try:
            stamps = {"event_id": envelope.id, "occurred_at": envelope.time, "traceparent": envelope.traceparent}
            return cls.model_validate({**envelope.data, **stamps})
        except ValidationError as error:
            # Pydantic's message repeats the offending input, which may be personal: name places and reasons only.
            reasons = "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors(include_input=False)
            )
            raise MalformedEvent(f"{cls.type} does not fit its schema: {reasons}") from None


class EncodedEvent(NamedTuple):
    """An event as it goes to the broker: `body` is its envelope, already written."""

    id: str
    type: str
    body: bytes
    traceparent: str | None


class Envelope(BaseModel):
    """CloudEvents 1.0, structured JSON mode. https://github.com/cloudevents/spec (JSON event format)."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    specversion: str = "1.0"
    id: UUID
    type: str
    source: str
    subject: str = ""
    time: datetime
    traceparent: str | None = None
    data: dict[str, Any]

    @classmethod
    def parse(cls, content: bytes | Mapping[str, Any]) -> Self:
        """Read a message body, or the JSON of one; raises MalformedEvent with a reason that repeats none of it."""
        try:
            return cls.model_validate(orjson.loads(content) if isinstance(content, bytes) else content)
        except orjson.JSONDecodeError:
            raise MalformedEvent("the body is not JSON") from None
        except ValidationError as error:
            places = ", ".join(".".join(map(str, e["loc"])) or "body" for e in error.errors(include_input=False))
            raise MalformedEvent(f"the envelope is not a CloudEvent, see: {places}") from None
