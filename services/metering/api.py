"""HTTP in: holds for the gateway, usage and limits for users, resets for admins. All of it internal."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.errors import Forbidden
from libs.common.http import CurrentCaller
from libs.common.inputs import Input
from libs.common.plans import Plans
from libs.common.service_tokens import Caller
from services.metering import operations, queries
from services.metering.domain import MAX_AMOUNT, Metric, Period, Usage, remaining

Amount = Annotated[int, Field(strict=True, ge=1, le=MAX_AMOUNT)]


class HoldAsk(Input):
    """`hold_id` is the id of the run the quota is for; asking again with it is safe."""

    hold_id: UUID
    amounts: Annotated[dict[Metric, Amount], Field(min_length=1)]


class Routes:
    def __init__(self, database: Database, plans: Plans) -> None:
        self._database = database
        self._plans = plans

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal")
        router.add_api_route("/holds", self.create_hold, methods=["POST"], status_code=201)
        router.add_api_route("/holds/{hold_id}", self.delete_hold, methods=["DELETE"], status_code=204)
        router.add_api_route("/usage", self.get_usage, methods=["GET"])
        router.add_api_route("/limits/check", self.check_limit, methods=["GET"])
        router.add_api_route("/users/{user_id}/usage/reset", self.reset_usage, methods=["POST"], status_code=204)
        return router

    async def create_hold(self, caller: CurrentCaller, ask: HoldAsk) -> dict[str, Any]:
        user_id = caller.require_user()
        async with self._database.transaction() as conn:
            hold = await operations.reserve_usage(
                conn, self._plans, hold_id=ask.hold_id, user_id=user_id, amounts=ask.amounts
            )
        return {"hold_id": str(hold.id), "expires_at": iso_millis(hold.expires_at)}

    async def delete_hold(self, caller: CurrentCaller, hold_id: UUID) -> Response:
        user_id = caller.require_user()
        async with self._database.transaction() as conn:
            await operations.release_hold(conn, hold_id=hold_id, user_id=user_id)
        return Response(status_code=204)

    async def get_usage(self, caller: CurrentCaller) -> dict[str, Any]:
        standing = await self._standing(caller)
        resets_at = iso_millis(standing.period.end)
        return {
            "period": {"start": iso_millis(standing.period.start), "end": resets_at},
            "tier": standing.tier,
            "metrics": {
                metric.value: {
                    "used": usage.used,
                    "held": usage.held,
                    "limit": limit,
                    "remaining": remaining(usage, limit),
                    "resets_at": resets_at,
                }
                for metric, (usage, limit) in standing.metrics.items()
            },
        }

    async def check_limit(
        self, caller: CurrentCaller, metric: Metric, amount: Annotated[int, Query(ge=1, le=MAX_AMOUNT)] = 1
    ) -> dict[str, Any]:
        """A forecast for clients to show; what decides is the hold."""
        usage, limit = (await self._standing(caller)).metrics[metric]
        left = remaining(usage, limit)
        return {
            "allowed": left is None or amount <= left,
            "current": usage.used + usage.held,
            "limit": limit,
            "remaining": left,
        }

    async def reset_usage(self, caller: CurrentCaller, user_id: UUID) -> Response:
        """For the gateway, which has decided that an admin asks."""
        if caller.service != "gateway":
            raise Forbidden("Only the gateway resets usage.")
        async with self._database.transaction() as conn:
            await operations.reset_usage(conn, user_id=user_id)
        return Response(status_code=204)

    async def _standing(self, caller: Caller) -> "_Standing":
        user_id = str(caller.require_user())
        async with self._database.transaction_as(caller.claims) as conn:
            period = await queries.get_current_period(conn)
            account = await queries.find_account(conn, user_id)
            usage = await queries.find_usage(conn, user_id=user_id, period=period)
        limits = self._plans.tier(account.tier).limits
        metrics = {metric: (usage.get(metric, Usage()), limits.get(metric)) for metric in Metric}
        return _Standing(period=period, tier=account.tier, metrics=metrics)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Standing:
    """Usage and limit (None: unlimited) of every metric in the current period."""

    period: Period
    tier: str
    metrics: Mapping[Metric, tuple[Usage, int | None]]
