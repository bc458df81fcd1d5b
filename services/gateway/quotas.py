"""Quota at metering: held before something is made, given back if it was not. Nothing is decided here."""

from collections.abc import Mapping, Sequence
from typing import Final
from uuid import UUID

import orjson
import structlog
from fastapi import Response

from libs.common.errors import Unavailable
from services.gateway.domain import Identity
from services.gateway.upstreams import Upstream, UpstreamUnavailable

log = structlog.get_logger(__name__)

_JSON: Final = {"content-type": "application/json"}


class Quotas:
    def __init__(self, metering: Upstream, *, upgrade_url: str) -> None:
        self._metering = metering
        self._upgrade_url = upgrade_url

    async def hold(
        self, identity: Identity, hold_id: UUID, amounts: Mapping[str, int], *, features: Sequence[str] = ()
    ) -> Response | None:
        """None if it was granted, else the refusal to pass on. Asking again with the id is safe.

        `features` are what the plan must include beside the amounts.
        """
        ask = orjson.dumps({"hold_id": str(hold_id), "amounts": dict(amounts), "features": list(features)})
        response = await self._metering.call("POST", "/internal/holds", identity=identity, content=ask, headers=_JSON)
        if response.is_success:
            return None
        if response.status_code not in {403, 429}:
            raise UpstreamUnavailable("The metering service did not decide.", retry_after_s=2)
        refusal = {**response.json(), "upgrade_url": self._upgrade_url}
        headers = {"Retry-After": response.headers.get("retry-after", "60")} if response.status_code == 429 else {}  # noqa: PLR2004
        return Response(orjson.dumps(refusal), response.status_code, headers, media_type="application/problem+json")

    async def release(self, identity: Identity, hold_id: UUID) -> None:
        """Give back what was not used. If this fails, too, metering sweeps it."""
        try:
            await self._metering.call("DELETE", f"/internal/holds/{hold_id}", identity=identity)
        except Unavailable as error:
            log.info("hold_left_to_the_sweeper", hold_id=str(hold_id), error=error.code)
