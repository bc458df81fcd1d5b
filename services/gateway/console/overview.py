"""The first page: is the house well, and if not, what is it, by how much, and which section of the runbook mends it."""

from typing import Any

from fastapi import APIRouter, Request, Response

from libs.common.clock import Clock
from libs.common.database import Database
from services.gateway.console import queries
from services.gateway.console.charts import charts
from services.gateway.console.domain import strip
from services.gateway.console.live import LiveParts
from services.gateway.console.render import View
from services.gateway.console.state import Board


class OverviewRoutes:
    def __init__(self, *, database: Database, board: Board, view: View, live: LiveParts, clock: Clock) -> None:
        self._database = database
        self._board = board
        self._view = view
        self._live = live
        self._clock = clock

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/console")
        router.add_api_route("", self.page, methods=["GET"])
        router.add_api_route("/live/overview", self.follow, methods=["GET"], response_model=None)
        return router

    async def page(self, request: Request) -> Response:
        return self._view.page("overview.html", request, **await self._picture())

    async def follow(self, request: Request) -> Response:
        async def draw() -> tuple[str, bool]:
            return self._view.fragment("_overview.html", **await self._picture()), False

        return self._live.follow(request, draw)

    async def _picture(self) -> dict[str, Any]:
        health = await self._board.health()
        queues = await self._board.queues()
        async with self._database.transaction() as conn:
            samples = await queries.list_samples(conn)
            minutes = await queries.list_traffic(conn)
            users = await queries.count_users(conn)
        now = self._clock()
        troubles = [(service.name, check) for service in health.services for check in service.troubles]
        return {
            "health": health,
            "troubles": troubles,
            "away": [service.name for service in health.services if service.status == "away"],
            "strips": {name: strip(samples, name, now=now) for name in health.statuses},
            "charts": charts(minutes, now=now),
            "queues": queues,
            "users": users,
        }
