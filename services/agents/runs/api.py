"""HTTP in for runs: list, look, follow, cancel. Reading runs as the user, so that row-level security decides."""

from typing import Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Response

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.http import CurrentCaller
from services.agents.paging import Cursor, Limit, decode_cursor, page
from services.agents.ports import Mirror
from services.agents.runs import operations, queries
from services.agents.runs.domain import Run

MICRO: Final = 1_000_000


class Routes:
    def __init__(self, *, database: Database, mirror: Mirror) -> None:
        self._database = database
        self._mirror = mirror

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/runs", tags=["runs"])
        router.add_api_route("", self.list_runs, methods=["GET"])
        router.add_api_route("/{run_id}", self.get_run, methods=["GET"])
        router.add_api_route("/{run_id}/events", self.list_events, methods=["GET"])
        router.add_api_route("/{run_id}/cancel", self.cancel_run, methods=["POST"])
        return router

    async def list_runs(self, caller: CurrentCaller, cursor: Cursor = None, limit: Limit = 20) -> Response:
        user_id = str(caller.require_user())
        before = decode_cursor(cursor)
        async with self._database.transaction_as(caller.claims) as conn:
            runs = await queries.list_runs(conn, user_id=user_id, before=before, limit=limit + 1)
        return _json(page(runs, limit=limit, render=render_run))

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
        return _json({"items": items, "is_terminal": is_terminal})

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


def render_run(run: Run) -> dict[str, Any]:
    return {
        "id": str(run.id),
        "status": run.status.value,
        "agent_type": run.agent_type,
        "task": run.task,
        "model_requested": run.model_requested,
        "model_used": run.model_used,
        "output": run.output,
        "usage": {"input_tokens": run.input_tokens, "output_tokens": run.output_tokens},
        # A number with exactly six decimals, written from the integer: it never passes through a float.
        "cost_usd": orjson.Fragment(f"{run.cost_micro_usd // MICRO}.{run.cost_micro_usd % MICRO:06d}"),
        "error": run.error,
        "template_id": str(run.template_id) if run.template_id else None,
        "background_event_id": str(run.background_event_id) if run.background_event_id else None,
        "attempt": run.attempt,
        "cancel_requested_at": iso_millis(run.cancel_requested_at) if run.cancel_requested_at else None,
        "created_at": iso_millis(run.created_at),
        "started_at": iso_millis(run.started_at) if run.started_at else None,
        "finished_at": iso_millis(run.finished_at) if run.finished_at else None,
    }


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content), media_type="application/json")
