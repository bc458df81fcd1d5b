"""Quota at metering: held before something is made, given back if it was not. Nothing is decided here.

Asks that arrive while a call is under way share the next one: a crowd costs metering a few calls, and each a verdict of
its own. A shared call hangs in the trace of the ask that waited longest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
import structlog
from fastapi import Response

from libs.common.errors import Unavailable
from libs.common.telemetry import current_traceparent
from libs.common.together import HELP_AFTER_S, Together
from services.gateway.domain import Identity
from services.gateway.upstreams import Upstream, UpstreamUnavailable

log = structlog.get_logger(__name__)

LANES: Final = 4
_JSON: Final = {"content-type": "application/json"}
_GRANTED: Final = 201
_FORBIDDEN: Final = 403
_EXHAUSTED: Final = 429


@dataclass(frozen=True, slots=True, kw_only=True)
class _Ask:
    hold_id: UUID
    content: Mapping[str, Any]
    traceparent: str | None


class Quotas:
    def __init__(self, metering: Upstream, *, upgrade_url: str) -> None:
        self._metering = metering
        self._upgrade_url = upgrade_url
        self._together = Together(
            self._ask_metering, lanes=LANES, help_after_s=HELP_AFTER_S, name=lambda ask: ask.hold_id
        )

    async def hold(
        self, identity: Identity, hold_id: UUID, amounts: Mapping[str, int], *, features: Sequence[str] = ()
    ) -> Response | None:
        """None if it was granted, else the refusal to pass on. Asking again with the id is safe.

        `features` are what the plan must include beside the amounts.
        """
        content = {
            "hold_id": str(hold_id),
            "user_id": str(identity.user_id),
            "amounts": {str(metric): amount for metric, amount in amounts.items()},
            "features": [*features],
        }
        ask = _Ask(hold_id=hold_id, content=content, traceparent=current_traceparent())
        verdict = await self._together.ask(ask)
        status: int = verdict["status"]
        if status == _GRANTED:
            return None
        if status not in {_FORBIDDEN, _EXHAUSTED}:
            raise UpstreamUnavailable("The metering service did not decide.", retry_after_s=2)
        refusal = {**verdict["body"], "upgrade_url": self._upgrade_url}
        headers = {"Retry-After": str(verdict.get("retry_after_s", 60))} if status == _EXHAUSTED else {}
        return Response(orjson.dumps(refusal), status, headers, media_type="application/problem+json")

    async def _ask_metering(self, asks: Sequence[_Ask]) -> Sequence[Mapping[str, Any]]:
        first = asks[0].traceparent
        response = await self._metering.call(
            "POST",
            "/internal/holds/together",
            content=orjson.dumps({"asks": [ask.content for ask in asks]}),
            headers={**_JSON, "traceparent": first} if first else _JSON,
        )
        if not response.is_success:
            raise UpstreamUnavailable("The metering service did not decide.", retry_after_s=2)
        return response.json()["answers"]

    async def release(self, identity: Identity, hold_id: UUID) -> None:
        """Give back what was not used. If this fails, too, metering sweeps it."""
        try:
            await self._metering.call("DELETE", f"/internal/holds/{hold_id}", identity=identity)
        except Unavailable as error:
            log.info("hold_left_to_the_sweeper", hold_id=str(hold_id), error=error.code)
