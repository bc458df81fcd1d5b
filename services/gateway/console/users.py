"""People: found, seen in full, and what an operator may do for or against them."""

import asyncio
from typing import Any, Final
from uuid import UUID

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from libs.common.database import Database
from libs.common.errors import Invalid, NotFound, VentureError
from libs.common.ids import new_id
from services.gateway.accounts import queries as accounts
from services.gateway.admin_users import operations as admin_users
from services.gateway.admin_users import queries as user_lists
from services.gateway.admin_users.domain import UserPatch, read_cursor, write_cursor
from services.gateway.console import operations, queries
from services.gateway.console.domain import TIERS, Bar, bars
from services.gateway.console.door import Entered, Form
from services.gateway.console.render import View, to
from services.gateway.house import House
from services.gateway.sessions import StandingCache

PAGE: Final = 50
RECENT: Final = 8
MAX_GRANT: Final = 1_000_000_000
_FLAGS: Final = {"": None, "true": True, "false": False}


class UserPages:
    def __init__(self, *, database: Database, house: House, standings: StandingCache, view: View) -> None:
        self._database = database
        self._house = house
        self._standings = standings
        self._view = view

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/console")
        router.add_api_route("/users", self.page, methods=["GET"])
        router.add_api_route("/users/{user_id}", self.user, methods=["GET"])
        router.add_api_route("/users/{user_id}/change", self.change, methods=["POST"])
        router.add_api_route("/users/{user_id}/reset", self.reset_usage, methods=["POST"])
        router.add_api_route("/users/{user_id}/grant", self.grant, methods=["POST"])
        router.add_api_route("/users/{user_id}/delete", self.delete, methods=["POST"])
        return router

    async def page(self, request: Request, search: str = "", cursor: str = "") -> Response:
        before = read_cursor(cursor)
        async with self._database.transaction() as conn:
            rows = await user_lists.list_users(conn, search=search.strip().lower()[:200], before=before, limit=PAGE + 1)
        shown = rows[:PAGE]
        next_cursor = write_cursor(shown[-1]["created_at"], shown[-1]["id"]) if len(rows) > PAGE else ""
        return self._view.page("users.html", request, rows=shown, search=search, next_cursor=next_cursor)

    async def user(self, request: Request, user_id: UUID) -> Response:
        async with self._database.transaction() as conn:
            user = await queries.find_user(conn, user_id)
            erasure = await accounts.find_erasure(conn, user_id)
            history = await queries.list_audit(
                conn, subject=str(user_id), action="", actor="", before=None, limit=RECENT
            )
        if user is None:
            if erasure is None:
                raise NotFound("There is no such user.")
            return self._view.page("erased.html", request, user_id=user_id, erasure=dict(erasure), history_rows=history)
        usage, grants, runs = await asyncio.gather(self._usage(user_id), self._grants(user_id), self._runs(user_id))
        return self._view.page(
            "user.html", request, user=user, usage=usage, grants=grants, runs=runs, history_rows=history, tiers=TIERS
        )

    async def change(self, request: Request, me: Entered, form: Form, user_id: UUID) -> Response:
        """Plan, ban or admin rights, whichever the form names."""
        try:
            patch = UserPatch.model_validate(
                {
                    "tier": form.get("tier") or None,
                    "admin": _FLAGS[form.get("admin", "")],
                    "banned": _FLAGS[form.get("banned", "")],
                    "reason": form.get("reason", ""),
                }
            )
        except (ValidationError, KeyError):
            raise Invalid("This change cannot be made: choose from what the page offers.") from None
        async with self._database.transaction() as conn:
            await admin_users.change_user(
                conn, actor=me.user_id, user_id=user_id, patch=patch, request_id=request.state.request_id
            )
        self._standings.forget(user_id)
        return to(f"/console/users/{user_id}", "user_changed")

    async def reset_usage(self, request: Request, me: Entered, user_id: UUID) -> Response:
        await self._house.ask("metering", "POST", f"/internal/users/{user_id}/usage/reset", body={})
        await self._note(request, me, "usage_reset", user_id, {})
        return to(f"/console/users/{user_id}", "usage_reset")

    async def grant(self, request: Request, me: Entered, form: Form, user_id: UUID) -> Response:
        """Credits beyond the plan; the form's id makes a second sending of it the same grant."""
        amount = form.get("amount", "")
        if not (amount.isascii() and amount.isdigit() and 0 < int(amount[:12]) <= MAX_GRANT):
            raise Invalid("The amount is a whole number above zero.")
        body = {
            "grant_id": form.get("grant_id", ""),
            "metric": form.get("metric", ""),
            "amount": int(amount),
            "reason": form.get("reason", "")[:500],
        }
        await self._house.ask(
            "metering",
            "POST",
            f"/internal/admin/users/{user_id}/grants",
            body=body,
            headers={"x-actor": str(me.user_id)},
        )
        await self._note(request, me, "usage_granted", user_id, body)
        return to(f"/console/users/{user_id}", "granted")

    async def delete(self, request: Request, me: Entered, form: Form, user_id: UUID) -> Response:
        """The address must be typed: nobody is deleted by a slip."""
        async with self._database.transaction() as conn:
            user = await queries.find_user(conn, user_id)
            if user is None:
                raise NotFound("There is no such user.")
            if form.get("confirm", "").strip().lower() != (user["email"] or str(user_id)):
                raise Invalid("Type the address of the account to delete it; this was another.")
            await operations.delete_user(conn, actor=me.user_id, user_id=user_id, request_id=request.state.request_id)
        self._standings.forget(user_id)
        return to(f"/console/users/{user_id}", "deleted")

    async def _usage(self, user_id: UUID) -> list[Bar] | None:
        """None while metering does not answer: the rest of the page is worth showing."""
        try:
            return bars((await self._house.ask("metering", "GET", "/internal/usage", user_id=user_id))["metrics"])
        except VentureError:
            return None

    async def _grants(self, user_id: UUID) -> dict[str, Any] | None:
        try:
            grants = await self._house.ask("metering", "GET", f"/internal/admin/users/{user_id}/grants")
        except VentureError:
            return None
        return {"items": grants["items"], "new_id": str(new_id())}

    async def _runs(self, user_id: UUID) -> list[dict[str, Any]] | None:
        wanted = {"user_id": user_id, "limit": RECENT}
        try:
            return (await self._house.ask("agents", "GET", "/internal/admin/runs", params=wanted))["items"]
        except VentureError:
            return None

    async def _note(self, request: Request, me: Entered, action: str, user_id: UUID, after: dict[str, Any]) -> None:
        async with self._database.transaction() as conn:
            await operations.note(
                conn,
                actor=me.user_id,
                action=action,
                subject=str(user_id),
                after=after,
                request_id=request.state.request_id,
            )
