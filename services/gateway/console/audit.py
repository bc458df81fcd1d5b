"""Who did what to whom, and how it was before."""

from typing import Final

from fastapi import APIRouter, Request, Response

from libs.common.database import Database
from services.gateway.admin_users.domain import read_cursor, write_cursor
from services.gateway.auth import queries as auth
from services.gateway.console import queries
from services.gateway.console.render import View

PAGE: Final = 50
ACTIONS: Final = (
    "console_signed_in",
    "maintenance",
    "parked_replayed",
    "parked_discarded",
    "run_cancelled",
    "stripe_compared",
    "stripe_event_replayed",
    "usage_granted",
    "usage_reset",
    "user_changed",
    "user_deleted",
)


class AuditRoutes:
    def __init__(self, *, database: Database, view: View) -> None:
        self._database = database
        self._view = view

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/console")
        router.add_api_route("/audit", self.page, methods=["GET"])
        return router

    async def page(
        self, request: Request, subject: str = "", action: str = "", actor: str = "", cursor: str = ""
    ) -> Response:
        """`actor` is an address or an id; one that nobody has matches nothing."""
        before = read_cursor(cursor)
        async with self._database.transaction() as conn:
            # Other hands than admins' write here, too: an actor may be a name instead of an id.
            actor_id = await auth.find_user_id(conn, actor.strip().lower()) if "@" in actor else actor.strip()
            rows = await queries.list_audit(
                conn,
                subject=subject.strip(),
                action=action,
                actor=str(actor_id or actor),
                before=before,
                limit=PAGE + 1,
            )
        shown = rows[:PAGE]
        next_cursor = write_cursor(shown[-1]["at"], shown[-1]["id"]) if len(rows) > PAGE else ""
        wanted = {"subject": subject, "action": action, "actor": actor}
        return self._view.page(
            "audit.html", request, rows=shown, next_cursor=next_cursor, wanted=wanted, actions=ACTIONS
        )
