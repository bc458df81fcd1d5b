"""Asks metering to let a run's hold hold more, over HTTP with a service token that names the run's user."""

from uuid import UUID

import httpx
import structlog

from libs.common import service_tokens
from libs.common.httpx_failures import HTTPX_FAILURES
from libs.common.telemetry import current_traceparent

log = structlog.get_logger(__name__)

TIMEOUT_S = 2.0


class MeteringHolds:
    """`client` has metering's address. Whatever is not a clear yes is a no: the run goes on with what it has."""

    def __init__(self, client: httpx.AsyncClient, *, secret: str) -> None:
        self._client = client
        self._secret = secret

    async def extend(self, run_id: UUID, user_id: str, *, tokens: int) -> bool:
        user = {"sub": user_id, "role": "authenticated"}
        token = service_tokens.mint(self._secret, issuer="agents", audience="metering", user=user)
        headers = {"Authorization": f"Bearer {token}"}
        if traceparent := current_traceparent():
            headers["traceparent"] = traceparent
        try:
            answer = await self._client.put(
                f"/internal/holds/{run_id}", json={"amounts": {"tokens": tokens}}, headers=headers
            )
        except HTTPX_FAILURES as error:
            log.warning("hold_not_extended", run_id=str(run_id), error=type(error).__name__)
            return False
        log.info("hold_extension_answered", run_id=str(run_id), tokens=tokens, status=answer.status_code)
        return answer.is_success
