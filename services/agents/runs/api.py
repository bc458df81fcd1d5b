"""HTTP in for runs: list, look, follow, cancel. Reading runs as the user, so that row-level security decides."""

from typing import Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Response

from libs.common.database import Database
from libs.common.http import Caller, CurrentCaller
from services.agents.paging import decode_cursor, page
from services.agents.ports import Mirror
from services.agents.runs import feedback_queries, operations, queries
from services.agents.runs.domain import RunFilter, RunNotFound
from services.agents.runs.export import as_csv
from services.agents.runs.inputs import ApprovalInput, BookmarkInput, ExportQuery, FeedbackInput, ListQuery
from services.agents.runs.rendering import render_run

MAX_EXPORTED: Final = 10_000


class Routes:
    def __init__(self, *, database: Database, mirror: Mirror) -> None:
        self._database = database
        self._mirror = mirror

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/runs", tags=["runs"])
        router.add_api_route("", self.list_runs, methods=["GET"])
        router.add_api_route("/export", self.export_runs, methods=["GET"])
        router.add_api_route("/{run_id}", self.get_run, methods=["GET"])
        router.add_api_route("/{run_id}/events", self.list_events, methods=["GET"])
        router.add_api_route("/{run_id}/cancel", self.cancel_run, methods=["POST"])
        router.add_api_route("/{run_id}/feedback", self.get_feedback, methods=["GET"])
        router.add_api_route("/{run_id}/feedback", self.give_feedback, methods=["POST"])
        router.add_api_route("/{run_id}/bookmark", self.bookmark, methods=["PUT"])
        router.add_api_route("/{run_id}/approval", self.decide, methods=["POST"])
        return router

    async def list_runs(self, caller: CurrentCaller, wanted: Annotated[ListQuery, Query()]) -> Response:
        user_id = str(caller.require_user())
        before = decode_cursor(wanted.cursor)
        async with self._database.transaction_as(caller.claims) as conn:
            runs = await queries.list_runs(
                conn, user_id=user_id, wanted=wanted.to_filter(), before=before, limit=wanted.limit + 1
            )
        return _json(page(runs, limit=wanted.limit, render=render_run))

    async def get_run(self, caller: CurrentCaller, run_id: UUID) -> Response:
        caller.require_user()
        async with self._database.transaction_as(caller.claims) as conn:
            return _json(render_run(await queries.get_run(conn, run_id)))

    async def list_events(
        self,
        caller: CurrentCaller,
        run_id: UUID,
        after: Annotated[int, Query(ge=0, le=2**62)] = 0,
        limit: Annotated[int, Query(ge=1, le=1000)] = 500,
    ) -> Response:
        """The stream's events behind `after`. `is_terminal`: nothing will ever follow the last one returned.

        That is also true of an empty page behind the end, so that a client that resumes there need not wait.
        """
        caller.require_user()
        async with self._database.transaction_as(caller.claims) as conn:
            await queries.get_run(conn, run_id)
            events = await queries.list_events(conn, run_id, after=after, limit=limit)
            is_terminal = events[-1].is_terminal if events else await queries.has_ended_by(conn, run_id, seq=after)
        items = [{"seq": event.seq, "type": event.type, "data": event.data} for event in events]
        # Keys in order, as in the live mirror: a stream is the same bytes live and replayed (jsonb keeps no order).
        body = orjson.dumps({"items": items, "is_terminal": is_terminal}, option=orjson.OPT_SORT_KEYS)
        return Response(body, media_type="application/json")

    async def cancel_run(self, caller: CurrentCaller, run_id: UUID) -> Response:
        """Answer with the run as it is now: cancelled if it was queued, soon to be if it is running.

        Three transactions, because the right to see the run is the user's and the right to end it the service's.
        """
        caller.require_user()
        async with self._database.transaction_as(caller.claims) as conn:
            await queries.get_run(conn, run_id)
        async with self._database.transaction() as conn:
            events = await operations.cancel_run(conn, run_id)
        self._mirror.offer(run_id, events)
        async with self._database.transaction_as(caller.claims) as conn:
            return _json(render_run(await queries.get_run(conn, run_id)))

    async def export_runs(self, caller: CurrentCaller, wanted: Annotated[ExportQuery, Query()]) -> Response:
        """All of the caller's runs in one file, newest first, up to ten thousand."""
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            runs = await queries.list_runs(conn, user_id=user_id, wanted=RunFilter(), before=None, limit=MAX_EXPORTED)
        items = [render_run(run) for run in runs]
        if wanted.format == "csv":
            return Response(as_csv(items), media_type="text/csv", headers=_attachment("runs.csv"))
        return Response(orjson.dumps({"items": items}), media_type="application/json", headers=_attachment("runs.json"))

    async def get_feedback(self, caller: CurrentCaller, run_id: UUID) -> Response:
        caller.require_user()
        async with self._database.transaction_as(caller.claims) as conn:
            await queries.get_run(conn, run_id)
            verdict, detail = await feedback_queries.find_feedback(conn, run_id) or (None, None)
        return _json({"run_id": str(run_id), "verdict": verdict, "detail": detail})

    async def give_feedback(self, caller: CurrentCaller, run_id: UUID, body: FeedbackInput) -> Response:
        """The caller's verdict on a finished run of their own; it may be given again and replaces the one before."""
        await self._own_run(caller, run_id)
        async with self._database.transaction() as conn:
            await operations.give_feedback(conn, run_id, verdict=body.verdict, detail=body.detail)
        return _json({"run_id": str(run_id), "verdict": body.verdict, "detail": body.detail})

    async def bookmark(self, caller: CurrentCaller, run_id: UUID, body: BookmarkInput) -> Response:
        await self._own_run(caller, run_id)
        async with self._database.transaction() as conn:
            await queries.mark_bookmarked(conn, run_id, is_bookmarked=body.bookmarked)
        return await self.get_run(caller, run_id)

    async def decide(self, caller: CurrentCaller, run_id: UUID, body: ApprovalInput) -> Response:
        """Approve or reject the result of a run that a background event asked for."""
        await self._own_run(caller, run_id)
        async with self._database.transaction() as conn:
            await operations.decide_run(conn, run_id, decision=body.decision)
        return await self.get_run(caller, run_id)

    async def _own_run(self, caller: Caller, run_id: UUID) -> None:
        """Raises RunNotFound also where the caller may see the run, as an admin does, but does not own it."""
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            if await queries.find_owner(conn, run_id) != user_id:
                raise RunNotFound


def _attachment(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
