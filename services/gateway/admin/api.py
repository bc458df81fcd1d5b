"""HTTP of admins: maintenance, usage reset, and how far an erasure has come."""

from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.errors import NotFound
from libs.common.inputs import Input
from services.gateway.accounts import queries as accounts
from services.gateway.admin import queries
from services.gateway.sessions import CurrentAdmin, require_live_session
from services.gateway.switches import operations as switches
from services.gateway.switches.state import Switches
from services.gateway.upstreams import Upstream, pass_back


class MaintenanceInput(Input):
    """Without a route group the whole house closes; without an expiry it stays closed until it is opened."""

    route_group: Annotated[str, Field(pattern=r"^[a-z-]{1,40}$")] | None = None
    expires_in_s: Annotated[int, Field(ge=1, le=604_800)] | None = None
    reason: Annotated[str, Field(max_length=500)] = ""


class AdminRoutes:
    def __init__(self, *, database: Database, switches: Switches, metering: Upstream) -> None:
        self._database = database
        self._switches = switches
        self._metering = metering

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/admin", tags=["admin"])
        router.add_api_route("/maintenance", self.close, methods=["PUT"])
        router.add_api_route("/maintenance", self.open, methods=["DELETE"])
        router.add_api_route(
            "/users/{user_id}/usage/reset", self.reset_usage, methods=["POST"], status_code=204, response_model=None
        )
        router.add_api_route("/erasures/{user_id}", self.erasure, methods=["GET"])
        return router

    async def close(
        self, request: Request, admin: CurrentAdmin, body: MaintenanceInput | None = None
    ) -> dict[str, Any]:
        return await self._switch(request, admin, body or MaintenanceInput(), is_on=True)

    async def open(self, request: Request, admin: CurrentAdmin, body: MaintenanceInput | None = None) -> dict[str, Any]:
        return await self._switch(request, admin, body or MaintenanceInput(), is_on=False)

    async def _switch(
        self, request: Request, admin: CurrentAdmin, body: MaintenanceInput, *, is_on: bool
    ) -> dict[str, Any]:
        await require_live_session(self._database, admin)
        async with self._database.transaction() as conn:
            state = await switches.set_maintenance(
                conn,
                actor=admin.user_id,
                is_on=is_on,
                route_group=body.route_group,
                expires_in_s=body.expires_in_s,
                reason=body.reason,
                request_id=request.state.request_id,
            )
        await self._switches.refresh()
        return state

    async def reset_usage(self, user_id: UUID, request: Request, admin: CurrentAdmin) -> Response:
        await require_live_session(self._database, admin)
        response = await self._metering.call("POST", f"/internal/users/{user_id}/usage/reset", content=orjson.dumps({}))
        if response.is_success:
            async with self._database.transaction() as conn:
                await queries.insert_audit(
                    conn,
                    actor=str(admin.user_id),
                    action="usage_reset",
                    subject=str(user_id),
                    request_id=request.state.request_id,
                )
        return pass_back(response)

    async def erasure(self, user_id: UUID, admin: CurrentAdmin) -> dict[str, Any]:
        """Which services have erased the user; complete when none is missing."""
        await require_live_session(self._database, admin)
        async with self._database.transaction() as conn:
            row = await accounts.find_erasure(conn, user_id)
        if row is None:
            raise NotFound("No deletion of this user is known.")
        done = {name: row[f"{name}_at"] for name in ("billing", "metering", "agents")}
        return {
            "user_id": str(user_id),
            "requested_at": iso_millis(row["requested_at"]),
            "erased": {name: iso_millis(at) if at else None for name, at in done.items()},
            "is_complete": all(done.values()),
        }
