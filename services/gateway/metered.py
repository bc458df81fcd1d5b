"""What each creating route takes of the caller's plan: declared in one table, so that no route can forget its limit.

A route that only makes something of ours that no plan limits says so by being `UNMETERED`. A test walks the OpenAPI
document, and fails for a route that is not in the table.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final
from uuid import UUID

import httpx
import orjson
import structlog
from fastapi import Response

from services.gateway.domain import Identity
from services.gateway.upstreams import Upstream, UpstreamUnavailable

log = structlog.get_logger(__name__)

SETTLE_TRIES: Final = 3
_JSON: Final = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """`takes` are amounts a request that are held and settled here; `metrics` are those the route itself sees to."""

    takes: Mapping[str, int] = field(default_factory=dict[str, int])
    metrics: tuple[str, ...] = ()
    features: tuple[str, ...] = ()

    def describe(self) -> Any:
        """As the OpenAPI document tells it."""
        if self == UNMETERED:
            return "unmetered"
        return {"metrics": sorted({*self.takes, *self.metrics}), "features": sorted(self.features)}


UNMETERED: Final = Metered()

METERED: Final[Mapping[str, Metered]] = {
    "POST /v1/runs": Metered(metrics=("runs", "tokens")),
    "POST /v1/runs/{row_id}/approval": UNMETERED,  # the run's hold covers what it goes on to use
    "POST /v1/runs/{row_id}/cancel": UNMETERED,
    "POST /v1/runs/{row_id}/feedback": UNMETERED,
    "GET /v1/runs/export": Metered(takes={"exports": 1}),
    "POST /v1/templates": Metered(takes={"templates": 1}),
    "POST /v1/prompts/preview": UNMETERED,  # no model is called
    "POST /v1/webhook-endpoints": UNMETERED,
    "POST /v1/webhook-endpoints/{row_id}/rotate": UNMETERED,
    "POST /v1/usage/events": UNMETERED,  # it is usage, and counted whatever the limit
    "POST /v1/billing/checkout": UNMETERED,
    "POST /v1/billing/portal": UNMETERED,
    "POST /v1/api-keys": UNMETERED,
    "POST /v1/api-keys/{key_id}/rotate": UNMETERED,
    "POST /v1/admin/users/{user_id}/usage/reset": UNMETERED,
    "POST /v1/admin/metering/{path}": UNMETERED,
    "POST /billing/webhook": UNMETERED,
    "POST /webhooks/{kind}/{endpoint_id}": UNMETERED,  # a run that follows from it is held when it is proposed
}


class Takings:
    """Holds what a request takes before it is passed on, and settles it when it has succeeded."""

    def __init__(self, metering: Upstream, *, upgrade_url: str = "/billing") -> None:
        self._metering = metering
        self._upgrade_url = upgrade_url

    async def around(
        self,
        metered: Metered,
        identity: Identity,
        hold_id: UUID,
        call: Callable[[], Awaitable[httpx.Response]],
    ) -> httpx.Response | Response:
        """The service's answer, or the refusal. What failed costs nothing; a request that died is swept."""
        refusal = await self._hold(metered, identity, hold_id)
        if refusal is not None:
            return refusal
        answered = False
        try:
            response = await call()
            answered = response.is_success
        finally:
            if not answered:
                await self._tell("DELETE", f"/internal/holds/{hold_id}", identity, None)
        if answered:
            settlement = orjson.dumps({"used": dict(metered.takes)})
            await self._tell("POST", f"/internal/holds/{hold_id}/settle", identity, settlement)
        return response

    async def _hold(self, metered: Metered, identity: Identity, hold_id: UUID) -> Response | None:
        ask = {"hold_id": str(hold_id), "amounts": dict(metered.takes), "features": list(metered.features)}
        response = await self._metering.call(
            "POST", "/internal/holds", identity=identity, content=orjson.dumps(ask), headers=_JSON
        )
        if response.is_success:
            return None
        if response.status_code not in {403, 429}:
            raise UpstreamUnavailable("The metering service did not decide.", retry_after_s=2)
        headers = {"Retry-After": response.headers["retry-after"]} if "retry-after" in response.headers else {}
        refusal = {**response.json(), "upgrade_url": self._upgrade_url}
        return Response(orjson.dumps(refusal), response.status_code, headers, media_type="application/problem+json")

    async def _tell(self, method: str, path: str, identity: Identity, content: bytes | None) -> None:
        """What the caller has got cannot be taken back, so this is tried again and then only told to operators."""
        for _ in range(SETTLE_TRIES):
            try:
                response = await self._metering.call(method, path, identity=identity, content=content, headers=_JSON)
            except UpstreamUnavailable:
                continue
            if response.is_success:
                return
        log.error("taking_not_told", path=path)
