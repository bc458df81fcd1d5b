"""HTTP in: usage events of other programs, one or up to a thousand at once."""

from typing import Any, Final, cast

import orjson
from fastapi import APIRouter, Request

from libs.common.database import Database
from libs.common.errors import BadRequest, UnsupportedMediaType
from libs.common.http import CurrentCaller
from libs.common.plans import Plans
from libs.common.service_tokens import Caller
from services.metering.ingest import domain
from services.metering.ingest.desk import IngestDesk
from services.metering.ingest.domain import Catalogue, MayNotReport, NotAnEvent, Refused, Reporter, UsageEvent
from services.metering.ingest.operations import ACCEPTED, DUPLICATE

SINGLE: Final = "application/cloudevents+json"
BATCH: Final = "application/cloudevents-batch+json"
PLAIN: Final = "application/json"
NUL: Final = b"\\u0000"


class IngestRoutes:
    def __init__(self, database: Database, plans: Plans) -> None:
        self._desk = IngestDesk(database, plans)
        self._catalogue = Catalogue(plans)

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal")
        router.add_api_route("/usage/events", self.count, methods=["POST"])
        return router

    async def count(self, request: Request, caller: CurrentCaller) -> dict[str, Any]:
        """Count each event once for ever. A batch is counted as a whole: after an error all of it may be sent again."""
        reporter = _reporter(caller)
        body = await request.body()
        raw = _events_of(request.headers.get("content-type", ""), body)
        refused: dict[int, str] = {}
        events: list[UsageEvent] = []
        places: list[int] = []
        may_have_nul = NUL in body
        for index, one in enumerate(raw):
            try:
                if may_have_nul:
                    _check_text(one)
                events.append(domain.read_event(one, reporter, self._catalogue))
                places.append(index)
            except Refused as refusal:
                refused[index] = refusal.reason
        verdicts = await self._desk.count(events)
        accepted, duplicates = verdicts.count(ACCEPTED), verdicts.count(DUPLICATE)
        if accepted + duplicates < len(events):
            told = zip(places, verdicts, strict=True)
            refused |= {place: verdict for place, verdict in told if verdict not in {ACCEPTED, DUPLICATE}}
        return {
            "accepted": accepted,
            "duplicates": duplicates,
            "rejected": [
                {"index": index, "id": _id_of(raw[index]), "reason": refused[index]} for index in sorted(refused)
            ],
        }


def _check_text(event: Any) -> None:
    """Raises Refused for text that PostgreSQL cannot hold, before it spoils the batch."""
    if NUL in orjson.dumps(event):
        raise Refused("text_must_not_contain_nul")


def _reporter(caller: Caller) -> Reporter:
    if caller.role == "service_role" and caller.service == "gateway":
        return Reporter(user_id=None)
    if caller.user_id is None or "api_key_id" not in caller.claims:
        raise MayNotReport("Usage is reported with an API key or the service role, not by a signed-in person.")
    return Reporter(user_id=caller.user_id)


def _events_of(content_type: str, body: bytes) -> list[Any]:
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type not in {SINGLE, BATCH, PLAIN}:
        raise UnsupportedMediaType(f"Send {SINGLE} or {BATCH}.")
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest("The body is not valid JSON.") from error
    if media_type == BATCH and not isinstance(content, list):
        raise NotAnEvent("A batch is an array of events.")
    if media_type == SINGLE and not isinstance(content, dict):
        raise NotAnEvent("A single event is an object.")
    events: list[Any] = cast("list[Any]", content) if isinstance(content, list) else [content]
    if len(events) > domain.MAX_BATCH:
        raise NotAnEvent(f"At most {domain.MAX_BATCH} events are taken at once.")
    return events


def _id_of(event: Any) -> str | None:
    event_id = cast("dict[str, Any]", event).get("id") if isinstance(event, dict) else None
    return event_id if isinstance(event_id, str) else None
