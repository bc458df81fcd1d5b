"""HTTP in: holds, for the gateway on behalf of the user its token names."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Response
from pydantic import Field, JsonValue

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.http import CurrentCaller
from libs.common.inputs import Input
from libs.common.plans import Plans
from services.metering import operations
from services.metering.desk import HoldDesk
from services.metering.domain import MAX_AMOUNT, Ask, Hold, UnknownMetric
from services.metering.ledger.domain import Settlement

Amount = Annotated[int, Field(strict=True, ge=1, le=MAX_AMOUNT)]
Used = Annotated[int, Field(strict=True, ge=0, le=MAX_AMOUNT)]
AskedAmounts = Annotated[dict[str, Amount], Field(min_length=1, max_length=20)]


class HoldAsk(Input):
    """`hold_id` is the id of what the quota is for; asking again with it is safe. `features` are needed, too."""

    hold_id: UUID
    amounts: AskedAmounts
    features: Annotated[list[Annotated[str, Field(max_length=63)]], Field(max_length=20)] = Field(default_factory=list)


class ExtensionAsk(Input):
    """What the hold should hold in all, not what is added: asking again is safe."""

    amounts: AskedAmounts


class Actuals(Input):
    """What was used in the end, at most once for each hold; `attributes` are written down beside it."""

    used: Annotated[dict[str, Used], Field(min_length=1, max_length=20)]
    attributes: dict[str, JsonValue] = Field(default_factory=dict)


class HoldRoutes:
    def __init__(self, database: Database, plans: Plans) -> None:
        self._database = database
        self._plans = plans
        self._desk = HoldDesk(database, plans)

    def router(self) -> APIRouter:
        router = APIRouter(prefix="/internal")
        router.add_api_route("/holds", self.create, methods=["POST"], status_code=201)
        router.add_api_route("/holds/{hold_id}", self.extend, methods=["PUT"])
        router.add_api_route("/holds/{hold_id}", self.release, methods=["DELETE"], status_code=204)
        router.add_api_route("/holds/{hold_id}/settle", self.settle, methods=["POST"], status_code=204)
        return router

    async def create(self, caller: CurrentCaller, ask: HoldAsk) -> dict[str, Any]:
        user_id = caller.require_user()
        self._require_meters(ask.amounts)
        hold = await self._desk.reserve(
            Ask(hold_id=ask.hold_id, user_id=user_id, amounts=ask.amounts, features=ask.features)
        )
        return _view(hold)

    async def extend(self, caller: CurrentCaller, hold_id: UUID, ask: ExtensionAsk) -> dict[str, Any]:
        user_id = caller.require_user()
        self._require_meters(ask.amounts)
        async with self._database.transaction() as conn:
            hold = await operations.extend_hold(conn, self._plans, hold_id=hold_id, user_id=user_id, totals=ask.amounts)
        return _view(hold)

    async def release(self, caller: CurrentCaller, hold_id: UUID) -> Response:
        user_id = caller.require_user()
        async with self._database.transaction() as conn:
            await operations.release_hold(conn, hold_id=hold_id, user_id=user_id)
        return Response(status_code=204)

    async def settle(self, caller: CurrentCaller, hold_id: UUID, settlement: Actuals) -> Response:
        """For what is used without a run, such as an export; runs settle by their event."""
        user_id = caller.require_user()
        self._require_meters(settlement.used)
        async with self._database.transaction() as conn:
            used = Settlement(hold_id=hold_id, user_id=user_id, used=settlement.used, attributes=settlement.attributes)
            await operations.settle_hold(conn, self._plans, used)
        return Response(status_code=204)

    def _require_meters(self, amounts: dict[str, int]) -> None:
        for metric in amounts:
            meter = self._plans.meters.get(metric)
            if meter is None or not meter.is_additive:
                raise UnknownMetric(f"{metric[:80]} is nothing that can be held.", metric=metric[:80])


def _view(hold: Hold) -> dict[str, Any]:
    return {"hold_id": str(hold.id), "expires_at": iso_millis(hold.expires_at), "amounts": dict(hold.amounts)}
