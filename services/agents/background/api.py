"""HTTP in for webhooks and background events. A delivery's signature is checked before a byte of it is parsed."""

from typing import Any
from uuid import UUID

import orjson
import structlog
from fastapi import APIRouter, Request, Response
from pydantic import Field

from libs.common.clock import Clock, iso_millis
from libs.common.database import Database
from libs.common.http import CurrentCaller
from libs.common.inputs import Input
from libs.common.plans import Plans
from services.agents.background import operations, queries
from services.agents.background.domain import (
    EndpointNotFound,
    SignatureInvalid,
    WebhookKind,
    WebhookUnreadable,
    read_delivery,
    verify,
)
from services.agents.background.queries import BackgroundEvent, Endpoint, NewEndpoint
from services.agents.paging import Cursor, Limit, decode_cursor, page

log = structlog.get_logger(__name__)


class EndpointInput(Input):
    kind: WebhookKind
    name: str = Field(min_length=1, max_length=120)
    auto_suggest: bool = False
    approval_required: bool = False


class Routes:
    def __init__(self, *, database: Database, plans: Plans, clock: Clock) -> None:
        self._database = database
        self._plans = plans
        self._clock = clock

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal", tags=["background"])
        router.add_api_route("/webhook-endpoints", self.list_endpoints, methods=["GET"])
        router.add_api_route("/webhook-endpoints", self.create_endpoint, methods=["POST"], status_code=201)
        router.add_api_route(
            "/webhook-endpoints/{endpoint_id}", self.delete_endpoint, methods=["DELETE"], status_code=204
        )
        router.add_api_route("/webhook-endpoints/{endpoint_id}/rotate", self.rotate_endpoint, methods=["POST"])
        router.add_api_route("/background-events", self.list_background_events, methods=["GET"])
        router.add_api_route("/webhooks/{kind}/{endpoint_id}", self.receive, methods=["POST"], status_code=202)
        return router

    async def list_endpoints(self, caller: CurrentCaller, cursor: Cursor = None, limit: Limit = 20) -> dict[str, Any]:
        user_id = str(caller.require_user())
        before = decode_cursor(cursor)
        async with self._database.transaction_as(caller.claims) as conn:
            endpoints = await queries.list_endpoints(conn, user_id=user_id, before=before, limit=limit + 1)
        return page(endpoints, limit=limit, render=_render_endpoint)

    async def create_endpoint(self, caller: CurrentCaller, body: EndpointInput) -> dict[str, Any]:
        """The answer shows the secret; nothing ever shows it again."""
        user_id = caller.require_user()
        async with self._database.transaction_as(caller.claims) as conn:
            created = await operations.create_endpoint(
                conn,
                NewEndpoint(
                    user_id=str(user_id),
                    kind=body.kind.value,
                    name=body.name,
                    auto_suggest=body.auto_suggest,
                    approval_required=body.approval_required,
                ),
            )
        return {**_render_endpoint(created.endpoint), "secret": created.secret}

    async def rotate_endpoint(self, caller: CurrentCaller, endpoint_id: UUID) -> dict[str, Any]:
        """A new secret, shown this once; the one before is accepted for a day more."""
        user_id = str(caller.require_user())
        async with self._database.transaction() as conn:
            secret = await operations.rotate_endpoint(conn, endpoint_id, user_id=user_id)
        return {"id": str(endpoint_id), "secret": secret}

    async def delete_endpoint(self, caller: CurrentCaller, endpoint_id: UUID) -> None:
        user_id = str(caller.require_user())
        async with self._database.transaction() as conn:
            await operations.delete_endpoint(conn, endpoint_id, user_id=user_id)

    async def list_background_events(
        self, caller: CurrentCaller, cursor: Cursor = None, limit: Limit = 20
    ) -> dict[str, Any]:
        user_id = str(caller.require_user())
        before = decode_cursor(cursor)
        async with self._database.transaction_as(caller.claims) as conn:
            events = await queries.list_background_events(conn, user_id=user_id, before=before, limit=limit + 1)
        return page(events, limit=limit, render=_render_background_event)

    async def receive(
        self, request: Request, response: Response, kind: WebhookKind, endpoint_id: UUID
    ) -> dict[str, Any]:
        """202 with the event's id; 200 for a delivery that was stored before; 401 or 404 with nothing stored."""
        body = await request.body()
        headers = {name.lower(): value for name, value in request.headers.items()}
        async with self._database.transaction() as conn:
            endpoint = await queries.find_endpoint_with_secret(conn, endpoint_id, kind=kind.value)
        if endpoint is None:
            raise EndpointNotFound
        try:
            verify(kind, secrets=endpoint.secrets, headers=headers, body=body, now=self._clock())
        except SignatureInvalid:
            log.warning("webhook_signature_refused", kind=kind.value, endpoint_id=str(endpoint_id))
            raise
        delivery = read_delivery(kind, headers=headers, body=body, content=_parse(body))
        async with self._database.transaction() as conn:
            event_id = await operations.receive_delivery(conn, endpoint, delivery, plans=self._plans)
        if event_id is None:
            response.status_code = 200
            return {"status": "duplicate"}
        return {"status": "accepted", "id": str(event_id)}


def _parse(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise WebhookUnreadable("The body is not JSON; set the webhook's content type to application/json.") from error


def _render_endpoint(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": str(endpoint.id),
        "kind": endpoint.kind,
        "name": endpoint.name,
        "auto_suggest": endpoint.auto_suggest,
        "approval_required": endpoint.approval_required,
        "path": f"/webhooks/{endpoint.kind}/{endpoint.id}",
        "created_at": iso_millis(endpoint.created_at),
    }


def _render_background_event(event: BackgroundEvent) -> dict[str, Any]:
    return {
        "id": str(event.id),
        "source": event.source,
        "kind": event.kind,
        "endpoint_id": str(event.endpoint_id),
        "payload": event.payload,
        "run_id": str(event.run_id) if event.run_id else None,
        "refusal": event.refusal,
        "created_at": iso_millis(event.created_at),
    }
