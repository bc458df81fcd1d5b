"""HTTP of operators, for admins through the gateway and for the command line: lists, repairs, grants."""

from collections.abc import Mapping
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Query, Response
from pydantic import AwareDatetime, Field

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.errors import Forbidden
from libs.common.http import CurrentCaller
from libs.common.ids import new_id
from libs.common.inputs import Input
from libs.common.plans import Plans
from libs.common.service_tokens import Caller
from services.metering.domain import MAX_AMOUNT, UnknownMetric
from services.metering.grants import operations as grant_operations
from services.metering.grants import queries as grants
from services.metering.ledger import queries as ledger
from services.metering.repairs import jobs, operations, queries
from services.metering.reports import queries as reports
from services.metering.reports.api import grant_view

Actor = Annotated[str, Header(alias="x-actor", max_length=200)]
Limit = Annotated[int, Query(ge=1, le=1_000)]
Reason = Annotated[str, Field(min_length=1, max_length=500)]


class RebuildAsk(Input):
    """With `verify` nothing is changed."""

    verify: bool = False


class RefundAsk(Input):
    reason: Reason


class CorrectionAsk(Input):
    """What should stand booked for the run; metrics not named stay as they are."""

    amounts: Annotated[dict[str, Annotated[int, Field(strict=True, ge=0, le=MAX_AMOUNT)]], Field(min_length=1)]
    reason: Reason


class GrantAsk(Input):
    """`grant_id` makes asking again safe. The lowest `priority` is used first; without an expiry it lasts."""

    grant_id: UUID | None = None
    metric: str
    amount: Annotated[int, Field(strict=True, ge=1, le=MAX_AMOUNT)]
    priority: Annotated[int, Field(ge=0, le=1_000)] = 100
    expires_at: AwareDatetime | None = None
    reason: Reason


class DetachAsk(Input):
    before: AwareDatetime


class RepairRoutes:
    def __init__(self, database: Database, plans: Plans) -> None:
        self._database = database
        self._plans = plans

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal")
        router.add_api_route("/users/{user_id}/usage/reset", self.reset_usage, methods=["POST"], status_code=204)
        admin = APIRouter(prefix="/admin")
        admin.add_api_route("/top-users", self.top_users, methods=["GET"])
        admin.add_api_route("/near-limit", self.near_limit, methods=["GET"])
        admin.add_api_route("/holds/orphans", self.orphans, methods=["GET"])
        admin.add_api_route("/holds/{hold_id}/end", self.end_hold, methods=["POST"])
        admin.add_api_route("/conflicts", self.conflicts, methods=["GET"])
        admin.add_api_route("/spikes", self.spikes, methods=["GET"])
        admin.add_api_route("/tiers/{tier}/usage/reset", self.reset_tier, methods=["POST"])
        admin.add_api_route("/users/{user_id}/ledger", self.user_ledger, methods=["GET"])
        admin.add_api_route("/users/{user_id}/replay", self.replay, methods=["POST"])
        admin.add_api_route("/users/{user_id}/grants", self.user_grants, methods=["GET"])
        admin.add_api_route("/users/{user_id}/grants", self.add_grant, methods=["POST"], status_code=201)
        admin.add_api_route("/grants/{grant_id}", self.void_grant, methods=["DELETE"], status_code=204)
        admin.add_api_route("/runs/{run_id}/refund", self.refund, methods=["POST"])
        admin.add_api_route("/runs/{run_id}/usage", self.correct, methods=["PUT"])
        admin.add_api_route("/rebuild", self.rebuild, methods=["POST"])
        admin.add_api_route("/ledger/months", self.months, methods=["GET"])
        admin.add_api_route("/ledger/months/detach", self.detach, methods=["POST"])
        router.include_router(admin)
        return router

    async def reset_usage(self, caller: CurrentCaller, user_id: UUID) -> Response:
        require_operator(caller)
        async with self._database.transaction() as conn:
            await operations.reset_usage(conn, user_id=user_id)
        return Response(status_code=204)

    async def reset_tier(self, caller: CurrentCaller, tier: str) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            return {"counters": await operations.reset_tier(conn, tier=tier)}

    async def top_users(self, caller: CurrentCaller, metric: str = "tokens", limit: Limit = 20) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            return {"items": _rows(await reports.find_top_users(conn, metric=metric, limit=limit))}

    async def near_limit(
        self, caller: CurrentCaller, percent: Annotated[int, Query(ge=1, le=1_000)] = 80, limit: Limit = 100
    ) -> dict[str, Any]:
        require_operator(caller)
        limits = {name: tier.limits for name, tier in self._plans.tiers.items()}
        async with self._database.transaction() as conn:
            return {"items": _rows(await reports.find_near_limit(conn, limits=limits, percent=percent, limit=limit))}

    async def orphans(
        self, caller: CurrentCaller, older_than_s: Annotated[int, Query(ge=0)] = 3_600, limit: Limit = 100
    ) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            return {"items": _rows(await queries.find_orphans(conn, older_than_s=older_than_s, limit=limit))}

    async def end_hold(self, caller: CurrentCaller, hold_id: UUID) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            hold = await operations.end_hold(conn, hold_id=hold_id)
        return {"hold_id": str(hold.id), "user_id": hold.user_id, "given_back": dict(hold.amounts)}

    async def conflicts(self, caller: CurrentCaller, limit: Limit = 100) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            return {"items": _rows(await queries.find_conflicts(conn, limit=limit))}

    async def spikes(self, caller: CurrentCaller, limit: Limit = 100) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            return {"items": _rows(await queries.find_spikes(conn, limit=limit))}

    async def user_ledger(
        self,
        caller: CurrentCaller,
        user_id: UUID,
        metric: str | None = None,
        since: Annotated[AwareDatetime | None, Query(alias="from")] = None,
        limit: Limit = 200,
    ) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            found = await queries.find_entries(conn, user_id=str(user_id), metric=metric, since=since, limit=limit)
        return {"items": _rows(found[::-1])}

    async def replay(self, caller: CurrentCaller, user_id: UUID) -> dict[str, Any]:
        """Work a user's counters out anew from the ledger and the open holds."""
        require_operator(caller)
        return {"mended": (await jobs.rebuild_user(self._database, str(user_id)))}

    async def user_grants(self, caller: CurrentCaller, user_id: UUID) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            return {"items": [grant_view(dict(row)) for row in await grants.find_grants(conn, str(user_id))]}

    async def add_grant(self, caller: CurrentCaller, user_id: UUID, ask: GrantAsk, actor: Actor = "") -> dict[str, Any]:
        require_operator(caller)
        meter = self._plans.meters.get(ask.metric)
        if meter is None or not meter.is_additive:
            raise UnknownMetric(f"{ask.metric[:80]} is nothing that credits can be given for.")
        grant_id = ask.grant_id or new_id()
        async with self._database.transaction() as conn:
            await grant_operations.add_grant(
                conn,
                grant_id=grant_id,
                user_id=user_id,
                metric=ask.metric,
                amount=ask.amount,
                priority=ask.priority,
                expires_at=ask.expires_at,
                reason=ask.reason,
                granted_by=actor or caller.service,
            )
            row = await grants.find_grant(conn, grant_id)
        return grant_view(dict(row)) if row is not None else {}

    async def void_grant(self, caller: CurrentCaller, grant_id: UUID) -> Response:
        require_operator(caller)
        async with self._database.transaction() as conn:
            await grant_operations.void_grant(conn, grant_id)
        return Response(status_code=204)

    async def refund(self, caller: CurrentCaller, run_id: UUID, ask: RefundAsk, actor: Actor = "") -> dict[str, Any]:
        require_operator(caller)
        by = actor or caller.service
        async with self._database.transaction() as conn:
            changes = await operations.refund_run(conn, self._plans, run_id=run_id, by=by, reason=ask.reason)
        return {"run_id": str(run_id), "changes": dict(changes)}

    async def correct(
        self, caller: CurrentCaller, run_id: UUID, ask: CorrectionAsk, actor: Actor = ""
    ) -> dict[str, Any]:
        require_operator(caller)
        unknown = sorted(ask.amounts.keys() - self._plans.meters.keys())
        if unknown:
            raise UnknownMetric(f"{unknown[0][:80]} is no metric.")
        async with self._database.transaction() as conn:
            changes = await operations.correct_run(
                conn,
                self._plans,
                run_id=run_id,
                amounts=ask.amounts,
                by=actor or caller.service,
                reason=ask.reason,
            )
        return {"run_id": str(run_id), "changes": dict(changes)}

    async def rebuild(self, caller: CurrentCaller, ask: RebuildAsk) -> dict[str, Any]:
        require_operator(caller)
        proof = await (jobs.prove(self._database) if ask.verify else jobs.rebuild(self._database))
        return {
            "is_equal": proof.is_equal,
            "counters": proof.counters.as_json(),
            "ledger": proof.ledger.as_json(),
            "mended": proof.mended,
        }

    async def months(self, caller: CurrentCaller) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            return {"items": _rows(await ledger.find_months(conn))}

    async def detach(self, caller: CurrentCaller, ask: DetachAsk) -> dict[str, Any]:
        require_operator(caller)
        async with self._database.transaction() as conn:
            return {"detached": await ledger.detach_months(conn, before=ask.before)}


def require_operator(caller: Caller) -> None:
    """For admins through the gateway, which has decided who they are, and for the operators' command line."""
    if caller.service not in {"gateway", "ops"} or caller.user_id is not None:
        raise Forbidden("Only operators may do this.")


def _rows(rows: list[Any]) -> list[dict[str, Any]]:
    return [_row(row) for row in rows]


def _row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as JSON: times as everywhere, ids as text."""
    return {
        name: iso_millis(value) if hasattr(value, "isoformat") else str(value) if isinstance(value, UUID) else value
        for name, value in row.items()
    }
