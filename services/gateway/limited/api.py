"""HTTP of the record of limited requests, for admins."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime

from libs.common.clock import iso_millis
from libs.common.database import Database
from services.gateway.limited import queries
from services.gateway.sessions import CurrentAdmin


class LimitedRoutes:
    def __init__(self, database: Database) -> None:
        self._database = database

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/v1/admin", tags=["admin"])
        router.add_api_route("/limited", self.list_limited, methods=["GET"])
        return router

    async def list_limited(
        self,
        _admin: CurrentAdmin,
        subject: Annotated[str, Query(max_length=100, examples=["ip:203.0.113.7"])] = "",
        since: AwareDatetime | None = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> dict[str, Any]:
        """Who was refused for asking too often, by which limit, in which part of the house; the last day by default."""
        async with self._database.transaction() as conn:
            rows = await queries.list_refusals(conn, subject=subject, since=since, limit=limit)
        items = [
            {name: iso_millis(value) if isinstance(value, datetime) else value for name, value in row.items()}
            for row in rows
        ]
        return {"items": items, "next_cursor": None}
