"""HTTP of users for admins: lists with search, changes, the audit log."""

from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Request

from libs.common.clock import iso_millis
from libs.common.database import Database, Record
from libs.common.errors import NotFound
from services.gateway.admin_users import operations, queries
from services.gateway.admin_users.domain import UserPatch, read_cursor, write_cursor
from services.gateway.sessions import CurrentAdmin, StandingCache
from services.gateway.switches import queries as switches

PageSize = Annotated[int, Query(ge=1, le=200)]
Cursor = Annotated[str, Query(max_length=200)]
Search = Annotated[str, Query(max_length=200)]


class AdminUserRoutes:
    def __init__(self, *, database: Database, standings: StandingCache) -> None:
        self._database = database
        self._standings = standings

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/admin", tags=["admin"])
        router.add_api_route("/users", self.list_users, methods=["GET"])
        router.add_api_route("/users/{user_id}", self.read_user, methods=["GET"])
        router.add_api_route("/users/{user_id}", self.change_user, methods=["PATCH"])
        router.add_api_route("/audit", self.list_audit, methods=["GET"])
        router.add_api_route("/switches", self.list_switches, methods=["GET"])
        return router

    async def list_users(
        self, _admin: CurrentAdmin, search: Search = "", cursor: Cursor = "", limit: PageSize = 50
    ) -> dict[str, Any]:
        before = read_cursor(cursor)
        async with self._database.transaction() as conn:
            rows = await queries.list_users(conn, search=search.strip().lower(), before=before, limit=limit + 1)
        return _page(rows, limit, "created_at")

    async def read_user(self, user_id: UUID, _admin: CurrentAdmin) -> dict[str, Any]:
        async with self._database.transaction() as conn:
            row = await queries.find_user(conn, user_id)
        if row is None:
            raise NotFound("There is no such user.")
        return _shown(row)

    async def change_user(
        self, user_id: UUID, body: UserPatch, request: Request, admin: CurrentAdmin
    ) -> dict[str, Any]:
        """Takes effect everywhere within 5 s."""
        async with self._database.transaction() as conn:
            after = await operations.change_user(
                conn, actor=admin.user_id, user_id=user_id, patch=body, request_id=request.state.request_id
            )
        self._standings.forget(user_id)
        return {"id": str(user_id), **after}

    async def list_audit(
        self,
        _admin: CurrentAdmin,
        subject: Search = "",
        actor: Search = "",
        action: Search = "",
        cursor: Cursor = "",
        limit: PageSize = 50,
    ) -> dict[str, Any]:
        """Newest first; what is given must match whole."""
        before = read_cursor(cursor)
        async with self._database.transaction() as conn:
            rows = await queries.list_audit(
                conn, subject=subject, actor=actor, action=action, before=before, limit=limit + 1
            )
        return _page(rows, limit, "at")

    async def list_switches(self, _admin: CurrentAdmin) -> dict[str, Any]:
        async with self._database.transaction() as conn:
            views = await switches.read_switches(conn)
        items = [{"name": name, "is_on": view.is_on, "expires_in_s": view.expires_in_s} for name, view in views.items()]
        return {"items": items, "next_cursor": None}


def _page(rows: list[Record], limit: int, ordered_by: str) -> dict[str, Any]:
    shown = rows[:limit]
    cursor = write_cursor(shown[-1][ordered_by], shown[-1]["id"]) if len(rows) > limit else None
    return {"items": [_shown(row) for row in shown], "next_cursor": cursor}


def _shown(row: Record) -> dict[str, Any]:
    return {name: iso_millis(value) if isinstance(value, datetime) else value for name, value in row.items()}
