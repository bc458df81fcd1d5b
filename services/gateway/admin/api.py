"""HTTP of admins: maintenance, usage reset, webhook events, how the services are, how far an erasure has come."""

import asyncio
import re
from collections.abc import Mapping
from typing import Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import Field

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.errors import NotFound, Unavailable
from libs.common.inputs import Input
from services.gateway.accounts import queries as accounts
from services.gateway.admin import queries
from services.gateway.sessions import CurrentAdmin
from services.gateway.switches import operations as switches
from services.gateway.switches.state import Switches
from services.gateway.upstreams import Name, Upstream, pass_back

_PLAIN_PATH: Final = re.compile(r"[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*")
"""No dots: nothing that a client or a server could take for a way out of the routes for operators."""


class MaintenanceInput(Input):
    """Without a route group the whole house closes; without an expiry it stays closed until it is opened."""

    route_group: Annotated[str, Field(pattern=r"^[a-z-]{1,40}$")] | None = None
    expires_in_s: Annotated[int, Field(ge=1, le=604_800)] | None = None
    reason: Annotated[str, Field(max_length=500)] = ""


class AdminRoutes:
    def __init__(self, *, database: Database, switches: Switches, upstreams: Mapping[Name, Upstream]) -> None:
        self._database = database
        self._switches = switches
        self._upstreams = upstreams

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/admin", tags=["admin"])
        router.add_api_route("/maintenance", self.close, methods=["PUT"])
        router.add_api_route("/maintenance", self.open, methods=["DELETE"])
        router.add_api_route(
            "/users/{user_id}/usage/reset", self.reset_usage, methods=["POST"], status_code=204, response_model=None
        )
        for method in ("GET", "POST", "PUT", "DELETE"):
            router.add_api_route(
                "/metering/{path:path}",
                self.metering,
                methods=[method],
                name=f"metering_{method.lower()}",
                response_model=None,
                include_in_schema=False,  # metering's README tells them
            )
        router.add_api_route("/erasures/{user_id}", self.erasure, methods=["GET"])
        router.add_api_route("/health", self.health, methods=["GET"])
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
        response = await self._upstreams["metering"].call(
            "POST", f"/internal/users/{user_id}/usage/reset", content=orjson.dumps({})
        )
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

    async def health(self, _admin: CurrentAdmin) -> dict[str, Any]:
        """What every service says of itself: each dependency and invariant, parked messages among them."""
        names = sorted(self._upstreams)
        return dict(zip(names, await asyncio.gather(*(self._ask_health(name) for name in names)), strict=True))

    async def _ask_health(self, name: Name) -> Any:
        try:
            return (await self._upstreams[name].call("GET", "/health/ready")).json()
        except Unavailable as error:
            return {"status": "failed", "failed": ["reachable"], "detail": error.detail, "checks": []}

    async def metering(self, path: str, request: Request, admin: CurrentAdmin) -> Response:
        """Metering's lists and repairs, as its README tells them; what changes something is audited."""
        if not _PLAIN_PATH.fullmatch(path):
            raise NotFound("There is nothing here.")
        content_type = request.headers.get("content-type")
        response = await self._upstreams["metering"].call(
            request.method,
            f"/internal/admin/{path}",
            params=request.query_params.multi_items(),
            content=await request.body() or None,
            headers={"x-actor": str(admin.user_id), **({"content-type": content_type} if content_type else {})},
        )
        if response.is_success and request.method != "GET":
            async with self._database.transaction() as conn:
                await queries.insert_audit(
                    conn,
                    actor=str(admin.user_id),
                    action="metering",
                    subject=f"{request.method} {path}",
                    request_id=request.state.request_id,
                )
        return pass_back(response)

    async def erasure(self, user_id: UUID, _admin: CurrentAdmin) -> dict[str, Any]:
        """Which services have erased the user; complete when none is missing."""
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
