"""HTTP in for operators: everybody's runs, one with its timeline, and its end; and for the gateway, how far runs are.

Only a service acting for itself gets in: the gateway has decided by then that an admin asks, and keeps the audit log.
"""

import base64
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Query, Response
from pydantic import Field

from libs.common.clock import iso_millis
from libs.common.database import Database, Record
from libs.common.errors import Forbidden
from libs.common.http import Caller, CurrentCaller
from libs.common.inputs import Input
from services.agents.paging import decode_cursor
from services.agents.ports import Mirror
from services.agents.runs import operations, operator_queries, queries
from services.agents.runs.domain import RunStatus
from services.agents.runs.rendering import render_run

MAX_EVENTS: Final = 2000


class ForServices(Forbidden):
    code = "agents.for_services"


class HeadsInput(Input):
    run_ids: Annotated[list[UUID], Field(max_length=20_000)]


class OperatorRoutes:
    def __init__(self, *, database: Database, mirror: Mirror) -> None:
        self._database = database
        self._mirror = mirror

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal/admin/runs", tags=["operators"])
        router.add_api_route("", self.list_runs, methods=["GET"])
        router.add_api_route("/heads", self.list_heads, methods=["POST"])
        router.add_api_route("/{run_id}", self.get_run, methods=["GET"])
        router.add_api_route("/{run_id}/cancel", self.cancel_run, methods=["POST"])
        return router

    async def list_runs(
        self,
        caller: CurrentCaller,
        user_id: UUID | None = None,
        status: RunStatus | None = None,
        cursor: Annotated[str | None, Query(max_length=200)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Response:
        _admit(caller)
        async with self._database.transaction() as conn:
            rows = await operator_queries.list_runs(
                conn,
                user_id=str(user_id) if user_id is not None else None,
                status=status.value if status is not None else None,
                before=decode_cursor(cursor),
                limit=limit + 1,
            )
        shown = rows[:limit]
        next_cursor = _cursor_after(shown[-1]) if len(rows) > limit else None
        return _json({"items": [_rendered(row) for row in shown], "next_cursor": next_cursor})

    async def list_heads(self, caller: CurrentCaller, body: HeadsInput) -> Response:
        """The number of each run's newest event, and which runs have ended; a run without events is left out."""
        _admit(caller)
        async with self._database.transaction() as conn:
            heads = await operator_queries.find_heads(conn, body.run_ids)
        return _json(
            {
                "heads": {str(run_id): head.seq for run_id, head in heads.items()},
                "ended": [str(run_id) for run_id, head in heads.items() if head.is_end],
            }
        )

    async def get_run(self, caller: CurrentCaller, run_id: UUID) -> Response:
        """The run with its owner and every event of its stream, with the instant each was written."""
        _admit(caller)
        async with self._database.transaction() as conn:
            run = await queries.get_run(conn, run_id)
            owner = await queries.find_owner(conn, run_id)
            events = await operator_queries.list_events(conn, run_id, limit=MAX_EVENTS)
        return _json({**render_run(run), "user_id": owner, "events": [_rendered(event) for event in events]})

    async def cancel_run(self, caller: CurrentCaller, run_id: UUID) -> Response:
        """Cancelling what has ended changes nothing."""
        _admit(caller)
        async with self._database.transaction() as conn:
            await queries.get_run(conn, run_id)
            events = await operations.cancel_run(conn, run_id)
        self._mirror.offer(run_id, events)
        return _json({"id": str(run_id)})


def _admit(caller: Caller) -> None:
    if caller.user_id is not None:
        raise ForServices("This is for services.")


def _cursor_after(row: Record) -> str:
    return base64.urlsafe_b64encode(f"{row['created_at'].isoformat()}|{row['id']}".encode()).decode()


def _rendered(row: Record) -> dict[str, Any]:
    return {name: iso_millis(value) if isinstance(value, datetime) else value for name, value in dict(row).items()}


def _json(content: Any) -> Response:
    return Response(orjson.dumps(content, default=str), media_type="application/json")
