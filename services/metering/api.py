"""HTTP in: holds, for the gateway on behalf of the user its token names, or of those whose asks it brings together."""

from collections.abc import Sequence
from typing import Annotated, Any, Final
from uuid import UUID

import orjson
from fastapi import APIRouter, Response
from pydantic import Field, JsonValue
from starlette.types import Scope

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.errors import Forbidden, VentureError
from libs.common.http import CurrentCaller, problem
from libs.common.inputs import Input
from libs.common.lanes import JsonLane, Lane
from libs.common.plans import Plans
from libs.common.service_tokens import Caller
from libs.common.together import MOST
from services.metering import operations
from services.metering.desk import HoldDesk
from services.metering.domain import MAX_AMOUNT, Ask, Hold, UnknownMetric
from services.metering.ledger.domain import Settlement

Amount = Annotated[int, Field(strict=True, ge=1, le=MAX_AMOUNT)]
Used = Annotated[int, Field(strict=True, ge=0, le=MAX_AMOUNT)]
AskedAmounts = Annotated[dict[str, Amount], Field(min_length=1, max_length=20)]
HOLDS: Final = "/internal/holds"
TOGETHER: Final = "/internal/holds/together"


class HoldAsk(Input):
    """`hold_id` is the id of what the quota is for; asking again with it is safe. `features` are needed, too."""

    hold_id: UUID
    amounts: AskedAmounts
    features: Annotated[list[Annotated[str, Field(max_length=63)]], Field(max_length=20)] = Field(default_factory=list)


class UsersAsk(HoldAsk):
    user_id: UUID


class HoldAsks(Input):
    """Asks that came at the same moment, each with its user; no hold is asked for twice."""

    asks: Annotated[list[UsersAsk], Field(min_length=1, max_length=MOST)]


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
        router.add_api_route("/holds/together", self.create_together, methods=["POST"])
        router.add_api_route("/holds/{hold_id}", self.extend, methods=["PUT"])
        router.add_api_route("/holds/{hold_id}", self.release, methods=["DELETE"], status_code=204)
        router.add_api_route("/holds/{hold_id}/settle", self.settle, methods=["POST"], status_code=204)
        return router

    def lanes(self) -> Sequence[Lane]:
        """A third of the processor time of the same ask through the routes."""

        async def create(scope: Scope, _: bytes, ask: HoldAsk) -> Response:
            return _json(await self._create(_caller(scope), ask), 201)

        async def create_together(scope: Scope, _: bytes, asked: HoldAsks) -> Response:
            return _json(await self._create_together(_caller(scope), asked), 200)

        return (
            JsonLane(path=HOLDS, model=HoldAsk, serve=create),
            JsonLane(path=TOGETHER, model=HoldAsks, serve=create_together),
        )

    async def create(self, caller: CurrentCaller, ask: HoldAsk) -> dict[str, Any]:
        return await self._create(caller, ask)

    async def create_together(self, caller: CurrentCaller, asked: HoldAsks) -> Response:
        """The answer each would have got alone: status, body, and when to come again."""
        return _json(await self._create_together(caller, asked), 200)

    async def _create(self, caller: Caller, ask: HoldAsk) -> dict[str, Any]:
        user_id = caller.require_user()
        self._require_meters(ask.amounts)
        return _view(await self._desk.reserve(_ask(ask, user_id)))

    async def _create_together(self, caller: Caller, asked: HoldAsks) -> dict[str, Any]:
        if caller.service != "gateway" or caller.user_id is not None:
            raise Forbidden("Only the gateway may ask for several users.")
        refused = {place: refusal for place, ask in enumerate(asked.asks) if (refusal := self._unmetered(ask.amounts))}
        askable = [_ask(ask, ask.user_id) for place, ask in enumerate(asked.asks) if place not in refused]
        verdicts = iter(await self._desk.reserve_many(askable) if askable else [])
        return {"answers": [_answer(refused.get(place) or next(verdicts)) for place in range(len(asked.asks))]}

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
        refusal = self._unmetered(amounts)
        if refusal is not None:
            raise refusal

    def _unmetered(self, amounts: dict[str, int]) -> UnknownMetric | None:
        for metric in amounts:
            meter = self._plans.meters.get(metric)
            if meter is None or not meter.is_additive:
                return UnknownMetric(f"{metric[:80]} is nothing that can be held.", metric=metric[:80])
        return None


def _caller(scope: Scope) -> Caller:
    return scope["state"]["caller"]  # nobody gets below /internal without being one


def _ask(ask: HoldAsk, user_id: UUID) -> Ask:
    return Ask(hold_id=ask.hold_id, user_id=str(user_id), amounts=ask.amounts, features=ask.features)


def _answer(verdict: Hold | BaseException) -> dict[str, Any]:
    if isinstance(verdict, Hold):
        return {"status": 201, "body": _view(verdict)}
    if not isinstance(verdict, VentureError):
        raise verdict
    refusal = problem(verdict)
    answer = {"status": refusal.status_code, "body": orjson.Fragment(bytes(refusal.body))}
    return answer if verdict.retry_after_s is None else {**answer, "retry_after_s": verdict.retry_after_s}


def _json(content: Any, status: int) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _view(hold: Hold) -> dict[str, Any]:
    return {"hold_id": str(hold.id), "expires_at": iso_millis(hold.expires_at), "amounts": dict(hold.amounts)}
