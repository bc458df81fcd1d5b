"""Maintenance, for the whole house or a part of it, and every switch that was ever thrown."""

from typing import Final

from fastapi import APIRouter, Request, Response

from libs.common.database import Database
from libs.common.errors import Invalid
from services.gateway.console import queries
from services.gateway.console.door import Entered, Form
from services.gateway.console.render import View, to
from services.gateway.switches import operations as switches
from services.gateway.switches.domain import MAINTENANCE
from services.gateway.switches.state import Switches

# The parts of /v1 that can be closed alone, as the gate names them; `auth` is sign-in, `pages` the playground.
GROUPS: Final = (
    "auth",
    "runs",
    "usage",
    "billing",
    "profile",
    "templates",
    "vibe-config",
    "prompts",
    "events",
    "background-events",
    "webhook-endpoints",
    "api-keys",
    "pages",
)
MINUTES: Final = (0, 15, 60, 240, 1440)
MAX_REASON: Final = 500


class MaintenanceRoutes:
    def __init__(self, *, database: Database, live_switches: Switches, view: View) -> None:
        self._database = database
        self._switches = live_switches
        self._view = view

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/console")
        router.add_api_route("/maintenance", self.page, methods=["GET"])
        router.add_api_route("/maintenance/close", self.close, methods=["POST"])
        router.add_api_route("/maintenance/open", self.open, methods=["POST"])
        return router

    async def page(self, request: Request) -> Response:
        async with self._database.transaction() as conn:
            rows = await queries.list_switches(conn)
        return self._view.page(
            "maintenance.html",
            request,
            switches=rows,
            is_closed=self._switches.in_maintenance(""),
            is_forced=not self._switches.is_on(MAINTENANCE) and self._switches.in_maintenance(""),
            groups=GROUPS,
            minutes=MINUTES,
        )

    async def close(self, request: Request, me: Entered, form: Form) -> Response:
        return await self._set(request, me, form, is_on=True)

    async def open(self, request: Request, me: Entered, form: Form) -> Response:
        return await self._set(request, me, form, is_on=False)

    async def _set(self, request: Request, me: Entered, form: Form, *, is_on: bool) -> Response:
        group, minutes = form.get("route_group", ""), form.get("minutes", "0")
        if group not in {"", *GROUPS} or minutes not in {str(choice) for choice in MINUTES}:
            raise Invalid("Choose a part of the house and a time from the lists.")
        async with self._database.transaction() as conn:
            await switches.set_maintenance(
                conn,
                actor=me.user_id,
                is_on=is_on,
                route_group=group or None,
                expires_in_s=int(minutes) * 60 or None,
                reason=form.get("reason", "")[:MAX_REASON],
                request_id=request.state.request_id,
            )
        await self._switches.refresh()
        return to("/console/maintenance", "closed" if is_on else "opened")
