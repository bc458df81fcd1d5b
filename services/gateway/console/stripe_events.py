"""What Stripe told: filtered, with what was kept of it, taken up again; and whether our tables and Stripe agree."""

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from libs.common.database import Database
from libs.common.errors import NotFound
from services.gateway.console import operations
from services.gateway.console.door import Entered
from services.gateway.console.render import View, to
from services.gateway.house import House, ServiceRefused


class StripeEventRoutes:
    def __init__(self, *, database: Database, house: House, view: View) -> None:
        self._database = database
        self._house = house
        self._view = view

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/console")
        router.add_api_route("/stripe", self.page, methods=["GET"])
        router.add_api_route("/stripe/reconcile", self.reconcile, methods=["POST"])
        router.add_api_route("/stripe/{event_id}", self.event, methods=["GET"])
        router.add_api_route("/stripe/{event_id}/replay", self.replay, methods=["POST"])
        return router

    async def page(
        self,
        request: Request,
        event_type: Annotated[str, Query(alias="type")] = "",
        object_id: str = "",
        unhandled: str = "",
        cursor: str = "",
    ) -> Response:
        wanted = {
            "type": event_type,
            "object_id": object_id,
            "unhandled": "true" if unhandled else "",
            "cursor": cursor,
        }
        try:
            events = await self._house.ask("billing", "GET", "/internal/admin/webhook-events", params=wanted)
            drift = await self._house.ask("billing", "GET", "/internal/admin/reconcile", params={"limit": 50})
        except ServiceRefused as refusal:
            return self._view.page(
                "stripe.html", request, events=None, drift=None, wanted=wanted, problem=refusal.detail
            )
        return self._view.page("stripe.html", request, events=events, drift=drift, wanted=wanted, problem="")

    async def event(self, request: Request, event_id: str) -> Response:
        try:
            event: dict[str, Any] = await self._house.ask(
                "billing", "GET", f"/internal/admin/webhook-events/{event_id}"
            )
        except ServiceRefused as refusal:
            raise NotFound("There is no such event.") from refusal
        return self._view.page("stripe_event.html", request, event=event)

    async def replay(self, request: Request, me: Entered, event_id: str) -> Response:
        body = {"event_id": event_id}
        answer = await self._house.ask("billing", "POST", "/internal/admin/webhook-events/replay", body=body)
        await self._note(request, me, "stripe_event_replayed", event_id, answer)
        return to(f"/console/stripe/{event_id}", "event_replayed", n=answer["objects"])

    async def reconcile(self, request: Request, me: Entered) -> Response:
        answer = await self._house.ask("billing", "POST", "/internal/admin/reconcile", body={"fix": False})
        await self._note(request, me, "stripe_compared", answer["id"], {})
        return to("/console/stripe", "reconciling")

    async def _note(self, request: Request, me: Entered, action: str, subject: str, after: dict[str, Any]) -> None:
        async with self._database.transaction() as conn:
            await operations.note(
                conn,
                actor=me.user_id,
                action=action,
                subject=subject,
                after=after,
                request_id=request.state.request_id,
            )
