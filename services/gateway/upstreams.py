"""The services behind the gateway: signed calls over kept-alive connections, timed out in time for our own promise."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final

import httpx
from fastapi import Response

from libs.common import service_tokens
from libs.common.errors import Unavailable
from libs.common.telemetry import current_traceparent
from services.gateway.domain import Identity

# Below the 5 s in which every answer is promised during a fault.
TIMEOUT: Final = httpx.Timeout(4.0, connect=1.0, pool=1.0)
_PASSED_BACK: Final = ("content-type", "retry-after", "location", "etag")


class UpstreamUnavailable(Unavailable):
    code = "gateway.upstream_unavailable"


class Upstream:
    """One service. Every call carries a token made for it, naming the user it is made for; nothing else identifies."""

    def __init__(self, name: str, *, client: httpx.AsyncClient, secret: str) -> None:
        self.name = name
        self._client = client
        self._secret = secret

    async def call(
        self,
        method: str,
        path: str,
        *,
        identity: Identity | None = None,
        role: str | None = None,
        params: Sequence[tuple[str, str]] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Call for a user, or for a role that is no user, or for the gateway itself.

        Return the answer if it is 2xx, 3xx, 4xx or 503; anything else becomes UpstreamUnavailable.
        """
        user = identity.user_claims if identity is not None else None
        if role is not None:
            user = {"role": role}
        token = service_tokens.mint(self._secret, issuer="gateway", audience=self.name, user=user)
        sent = {**(headers or {}), "Authorization": f"Bearer {token}"}
        traceparent = current_traceparent()
        if traceparent:
            sent["traceparent"] = traceparent
        try:
            response = await self._client.request(
                method, path, params=httpx.QueryParams([*params]) if params else None, content=content, headers=sent
            )
        except httpx.HTTPError as error:
            raise UpstreamUnavailable(f"The {self.name} service does not answer.", retry_after_s=2) from error
        if response.status_code >= 500 and response.status_code != 503:  # noqa: PLR2004 - 503 explains itself
            raise UpstreamUnavailable(f"The {self.name} service failed.", retry_after_s=2)
        return response


def pass_back(response: httpx.Response) -> Response:
    """Our answer is the service's: status and body as they are, and only the headers meant for clients."""
    headers = {name: response.headers[name] for name in _PASSED_BACK if name in response.headers}
    return Response(response.content, response.status_code, headers)


@asynccontextmanager
async def open_upstream(name: str, *, base_url: str, secret: str) -> AsyncGenerator[Upstream, None]:
    # Few connections: the pool looks through all of them for every call, and one service needs no more at once.
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=32, keepalive_expiry=60)
    async with httpx.AsyncClient(base_url=base_url, timeout=TIMEOUT, limits=limits, follow_redirects=False) as client:
        yield Upstream(name, client=client, secret=secret)
