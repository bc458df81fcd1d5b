"""Everybody's runs; one as it goes: its timeline, its text as it is written, its end."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request, Response

from libs.common.database import Database
from services.gateway.console import operations, queries
from services.gateway.console.domain import RUN_STATES, timeline
from services.gateway.console.door import Entered
from services.gateway.console.live import LiveParts
from services.gateway.console.render import View, to
from services.gateway.house import House

LIVE_S: Final = 1.0
_GOING: Final = ("queued", "running")


class RunPages:
    def __init__(self, *, database: Database, house: House, view: View, live: LiveParts) -> None:
        self._database = database
        self._house = house
        self._view = view
        self._live = live

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/console")
        router.add_api_route("/runs", self.page, methods=["GET"])
        router.add_api_route("/runs/{run_id}", self.run, methods=["GET"])
        router.add_api_route("/runs/{run_id}/cancel", self.cancel, methods=["POST"])
        router.add_api_route("/live/runs/{run_id}", self.follow, methods=["GET"], response_model=None)
        return router

    async def page(self, request: Request, status: str = "", user_id: str = "", cursor: str = "") -> Response:
        wanted = {"status": status, "user_id": user_id, "cursor": cursor}
        runs = await self._house.ask("agents", "GET", "/internal/admin/runs", params=wanted)
        emails = await self._emails(runs["items"])
        return self._view.page("runs.html", request, runs=runs, emails=emails, wanted=wanted, states=RUN_STATES)

    async def run(self, request: Request, run_id: UUID) -> Response:
        return self._view.page("run.html", request, **await self._picture(run_id))

    async def follow(self, request: Request, run_id: UUID) -> Response:
        async def draw() -> tuple[str, bool]:
            picture = await self._picture(run_id)
            return self._view.fragment("_run.html", **picture), not picture["is_going"]

        return self._live.follow(request, draw, every_s=LIVE_S)

    async def cancel(self, request: Request, me: Entered, run_id: UUID) -> Response:
        await self._house.ask("agents", "POST", f"/internal/admin/runs/{run_id}/cancel")
        async with self._database.transaction() as conn:
            await operations.note(
                conn,
                actor=me.user_id,
                action="run_cancelled",
                subject=str(run_id),
                request_id=request.state.request_id,
            )
        return to(f"/console/runs/{run_id}", "run_cancelled")

    async def _picture(self, run_id: UUID) -> dict[str, Any]:
        run = await self._house.ask("agents", "GET", f"/internal/admin/runs/{run_id}")
        events: Sequence[Mapping[str, Any]] = run["events"]
        text = "".join(event["data"].get("text", "") for event in events if event["type"] == "run.delta")
        return {
            "run": run,
            "text": run["output"] or text,
            "steps": timeline(run["created_at"], events),
            "is_going": run["status"] in _GOING,
            "email": (await self._emails([run])).get(run["user_id"], ""),
        }

    async def _emails(self, runs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
        async with self._database.transaction() as conn:
            return await queries.find_emails(conn, [UUID(user_id) for user_id in {run["user_id"] for run in runs}])
