"""HTTP of runs: accept under a hold, read, wait, stream."""

import re
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Scope

from libs.common.clock import iso_millis
from libs.common.database import Database
from libs.common.errors import Invalid, Unavailable
from libs.common.lanes import JsonLane, Lane, header
from libs.common.telemetry import current_traceparent
from services.gateway import sse
from services.gateway.domain import Identity
from services.gateway.idempotency import operations as keys
from services.gateway.idempotency.operations import Claim
from services.gateway.idempotency.state import Claims
from services.gateway.metered import METERED
from services.gateway.quotas import Quotas
from services.gateway.runs import queries
from services.gateway.runs.domain import Acceptance, RunInput, RunNotFound, not_started_yet, token_bound
from services.gateway.runs.state import Acceptances
from services.gateway.runs.streams import RunStreams
from services.gateway.sessions import CurrentIdentity
from services.gateway.upstreams import Upstream, pass_back

RUNS: Final = "/v1/runs"
MAX_WAIT_S: Final = 60
_WAIT: Final = re.compile(r"(?:^|[,;\s])wait=(\d{1,4})")

IdempotencyKey = Annotated[str | None, Header()]


class RunRoutes:
    def __init__(
        self,
        *,
        database: Database,
        quotas: Quotas,
        claims: Claims,
        agents: Upstream,
        streams: RunStreams,
        slots: sse.StreamSlots,
    ) -> None:
        self._database = database
        self._quotas = quotas
        self._claims = claims
        self._acceptances = Acceptances(database)
        self._agents = agents
        self._streams = streams
        self._slots = slots

    def router(self) -> APIRouter:
        router = APIRouter(tags=["runs"])
        router.add_api_route(RUNS, self.create, methods=["POST"], status_code=202, response_model=None)
        router.add_api_route("/v1/runs/{run_id}", self.read, methods=["GET"], response_model=None)
        router.add_api_route("/v1/runs/{run_id}/events", self.events, methods=["GET"], response_model=None)
        return router

    def lane(self) -> Lane:
        async def create(scope: Scope, content: bytes, body: RunInput) -> Response | None:
            identity = scope["state"].get("identity")
            if not isinstance(identity, Identity):
                return None
            key, prefer = header(scope, b"idempotency-key"), header(scope, b"prefer") or ""
            return await self._create(identity, content, body, key=key, prefer=prefer)

        return JsonLane(path=RUNS, model=RunInput, serve=create)

    async def create(
        self,
        request: Request,
        body: RunInput,
        identity: CurrentIdentity,
        idempotency_key: IdempotencyKey = None,
        prefer: Annotated[str, Header()] = "",
    ) -> Response:
        """Accept a run once: claim the key, hold what it can use at most, record the acceptance, answer 202."""
        return await self._create(identity, await request.body(), body, key=idempotency_key, prefer=prefer)

    async def _create(
        self, identity: Identity, content: bytes, body: RunInput, *, key: str | None, prefer: str
    ) -> Response:
        claim = await self._claim(identity, content, key)
        if claim.replay is not None:
            return Response(claim.replay, claim.replay_status, media_type="application/json")
        profile = self._acceptances.look_up(identity.user_id)  # while metering decides: one after the other took longer
        try:
            amounts = {"runs": 1, "tokens": token_bound(body)}
            features = METERED["POST /v1/runs"].features
            refusal = await self._quotas.hold(identity, claim.resource_id, amounts, features=features)
        except Unavailable:
            await self._give_back(identity, key)
            raise
        if refusal is not None:
            await self._give_back(identity, key)
            return refusal
        # From here on a crash or an unknown commit leaves a hold nobody confirms, which metering sweeps.
        run = Acceptance(
            run_id=claim.resource_id, user_id=identity.user_id, body=body, key=key, traceparent=current_traceparent()
        )
        return await self._answer(identity, run.run_id, await self._acceptances.accept(run, await profile), prefer)

    async def _claim(self, identity: Identity, content: bytes, key: str | None) -> Claim:
        if key is None:
            return keys.unclaimed()
        keys.check_key(key)
        request_hash = keys.hash_request("POST", RUNS, content)
        return await self._claims.claim(user_id=identity.user_id, key=key, request_hash=request_hash)

    async def _give_back(self, identity: Identity, key: str | None) -> None:
        """Let the same request be tried again at once, under the same id: a hold it may have got is found again."""
        if key is not None:
            await self._claims.give_back(user_id=identity.user_id, key=key)

    async def _answer(self, identity: Identity, run_id: UUID, answer: bytes, prefer: str) -> Response:
        wait = _WAIT.search(prefer.lower())
        if wait is not None:
            wait_s = min(int(wait[1]), MAX_WAIT_S)
            end = await self._streams.end(run_id, wait_s=wait_s) if wait_s else None
            if end is not None:
                # Whose run it is needs no look: it was accepted for them just now.
                return Response(end, media_type="application/json") if end else await self._read(identity, run_id)
        return Response(answer, 202, {"Location": f"/v1/runs/{run_id}"}, media_type="application/json")

    async def read(self, run_id: UUID, identity: CurrentIdentity) -> Response:
        return await self._read(identity, run_id)

    async def _read(self, identity: Identity, run_id: UUID) -> Response:
        response = await self._agents.call("GET", f"/internal/runs/{run_id}", identity=identity)
        if response.status_code != 404:  # noqa: PLR2004
            return pass_back(response)
        async with self._database.statement() as conn:
            row = await queries.find_accepted_run(conn, run_id=run_id, user_id=identity.user_id)
        if row is None:
            raise RunNotFound("There is no such run.")
        return JSONResponse(
            not_started_yet(run_id, agent_type=row["agent_type"], created_at=iso_millis(row["created_at"]))
        )

    async def events(
        self,
        run_id: UUID,
        identity: CurrentIdentity,
        last_event_id: Annotated[str | None, Header()] = None,
        after: int | None = None,
    ) -> Any:
        """Stream from `Last-Event-ID` (or `?after=`) on; from the start without either. 204 behind the last event."""
        start = _sequence_number(last_event_id) if last_event_id is not None else max(after or 0, 0)
        if await self._streams.is_told(identity, run_id, after=start):
            return Response(status_code=204)  # with which an EventSource stops asking (WHATWG HTML, section 9.2.3)
        return self._slots.stream(identity.user_id, self._streams.frames(identity, run_id, after=start))


def _sequence_number(last_event_id: str) -> int:
    if not re.fullmatch(r"\d{0,9}", last_event_id):
        raise Invalid("Last-Event-ID must be the number of the last event you have seen.")
    return int(last_event_id or 0)
