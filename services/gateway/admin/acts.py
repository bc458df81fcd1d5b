"""Admin routes that are another service's to answer: one table, passed on as the gateway itself, audited here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Path, Request, Response

from libs.common.database import Database
from services.gateway.admin import queries
from services.gateway.domain import Identity
from services.gateway.sessions import CurrentAdmin
from services.gateway.upstreams import Name, Upstream, pass_back

EventId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_]{1,255}$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One admin route that is a service's to answer. `action` names it in the audit log, if it changes anything."""

    method: str
    path: str
    to: Name
    internal: str
    action: str = ""
    is_in_person: bool = False
    """The service is told which admin asks, in the token's own words."""


ACTS: Final = (
    Act(method="GET", path="/webhook-events", to="billing", internal="/internal/admin/webhook-events"),
    Act(
        method="GET",
        path="/webhook-events/{event_id}",
        to="billing",
        internal="/internal/admin/webhook-events/{event_id}",
    ),
    Act(
        method="POST",
        path="/webhook-events/replay",
        to="billing",
        internal="/internal/admin/webhook-events/replay",
        action="webhook_events_replayed",
    ),
    Act(method="GET", path="/reconcile", to="billing", internal="/internal/admin/reconcile"),
    Act(
        method="POST",
        path="/reconcile",
        to="billing",
        internal="/internal/admin/reconcile",
        action="reconciliation_asked_for",
    ),
    Act(
        method="POST",
        path="/customers/link",
        to="billing",
        internal="/internal/admin/customers/link",
        action="customer_linked",
    ),
    Act(
        method="GET",
        path="/prompt-atoms",
        to="agents",
        internal="/internal/admin/prompt-atoms",
        is_in_person=True,
    ),
    Act(
        method="PUT",
        path="/prompt-atoms",
        to="agents",
        internal="/internal/admin/prompt-atoms",
        action="prompt_atom_saved",
        is_in_person=True,
    ),
    Act(
        method="GET",
        path="/users/{user_id}/grants",
        to="metering",
        internal="/internal/admin/users/{user_id}/grants",
    ),
    Act(
        method="POST",
        path="/users/{user_id}/grants",
        to="metering",
        internal="/internal/admin/users/{user_id}/grants",
        action="usage_granted",
    ),
    Act(
        method="DELETE",
        path="/grants/{grant_id}",
        to="metering",
        internal="/internal/admin/grants/{grant_id}",
        action="grant_voided",
    ),
)


class ActRoutes:
    def __init__(self, *, database: Database, upstreams: Mapping[Name, Upstream]) -> None:
        self._database = database
        self._upstreams = upstreams

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/admin", tags=["admin"])
        for act in ACTS:
            router.add_api_route(act.path, self._endpoint(act), methods=[act.method], response_model=None)
        return router

    def _endpoint(self, act: Act) -> Any:
        """One per kind of id, so that each is checked and told in the document as what it is."""

        async def plain(request: Request, admin: CurrentAdmin) -> Response:
            return await self._pass(act, request, admin)

        async def of_event(event_id: EventId, request: Request, admin: CurrentAdmin) -> Response:
            return await self._pass(act, request, admin, event_id=event_id)

        async def of_user(user_id: UUID, request: Request, admin: CurrentAdmin) -> Response:
            return await self._pass(act, request, admin, user_id=str(user_id))

        async def of_grant(grant_id: UUID, request: Request, admin: CurrentAdmin) -> Response:
            return await self._pass(act, request, admin, grant_id=str(grant_id))

        kinds = {"{event_id}": of_event, "{user_id}": of_user, "{grant_id}": of_grant}
        return next((endpoint for mark, endpoint in kinds.items() if mark in act.path), plain)

    async def _pass(self, act: Act, request: Request, admin: Identity, **ids: str) -> Response:
        """Ask as the gateway itself, which has decided that an admin asks; audit what is more than looking."""
        body = await request.body()
        response = await self._upstreams[act.to].call(
            act.method,
            act.internal.format(**ids),
            identity=admin if act.is_in_person else None,
            is_admin=act.is_in_person,
            params=request.query_params.multi_items(),
            content=body or None,
            headers={"x-actor": str(admin.user_id), **({"content-type": "application/json"} if body else {})},
        )
        if response.is_success and act.method != "GET":
            after = {"asked": _told(body), "answer": _told(response.content)}
            async with self._database.transaction() as conn:
                await queries.insert_audit(
                    conn,
                    actor=str(admin.user_id),
                    action=act.action,
                    subject=next(iter(ids.values()), ""),
                    after=after,
                    request_id=request.state.request_id,
                )
        return pass_back(response)


def _told(content: bytes) -> Any:
    return orjson.loads(content) if content else {}
