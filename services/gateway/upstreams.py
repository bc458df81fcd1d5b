"""The services behind the gateway: signed calls over kept-alive connections, timed out in time for our own promise.

Each service has a pool of its own, so that a slow one cannot use up another's connections, and a breaker, so that one
that does not answer costs callers a refusal instead of a wait.
"""

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, Literal
from urllib.parse import urlencode

import structlog
from fastapi import Response

from libs.common import service_tokens
from libs.common.errors import ServiceTokenRefused, Unavailable
from libs.common.http_client import AllBusy, Answer, HttpClient, NoAnswer, open_client
from libs.common.telemetry import current_traceparent
from services.gateway.domain import Breaker, Identity

Name = Literal["billing", "metering", "agents"]

log = structlog.get_logger(__name__)

# Below the 5 s in which every answer is promised during a fault. Billing may ask Stripe before it answers.
TIMEOUT_S: Final[Mapping[Name, float]] = {"metering": 3.0, "agents": 4.0, "billing": 4.5}
CONNECT_S: Final = 1.0
KEEP_ALIVE_S: Final = 60
"""Below the 75 s after which a service of ours closes a connection that is not used."""
MAX_CONNECTIONS: Final = 32
TOKEN_KEPT_S: Final = 20
"""A token is good for 60 s; its callee has at least 40 s left for what it is asked."""
_TOKENS: Final = 10_000
_PASSED_BACK: Final = frozenset({b"content-disposition", b"content-type", b"retry-after", b"location", b"etag"})
_WITHOUT_BODY: Final = (204, 304)


# All that a token's claims are made of: whose it is, and what they may.
_Bearer = tuple[str | None, str, Any, Any, bool, str | None]


class UpstreamUnavailable(Unavailable):
    code = "gateway.upstream_unavailable"


class Upstream:
    """One service. Every call carries a token made for it, naming the user it is made for; nothing else identifies."""

    def __init__(self, name: Name, *, client: HttpClient, secret: str) -> None:
        self.name: Name = name
        self._client = client
        self._secret = secret
        self._breaker = Breaker()
        self._tokens: dict[_Bearer, tuple[float, str]] = {}

    async def call(
        self,
        method: str,
        path: str,
        *,
        identity: Identity | None = None,
        is_admin: bool = False,
        role: str | None = None,
        params: Sequence[tuple[str, str]] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """Return the answer if it is 2xx, 3xx, 4xx or 503; anything else becomes UpstreamUnavailable.

        `is_admin` is told only of whom the gateway has just let through as one.
        """
        if not self._breaker.lets_through(time.monotonic()):
            raise UpstreamUnavailable(f"The {self.name} service does not answer.", retry_after_s=2)
        token = self._token(identity, is_admin=is_admin, role=role)
        sent = {**(headers or {}), "authorization": f"Bearer {token}"}
        traceparent = current_traceparent()
        if traceparent:
            sent.setdefault("traceparent", traceparent)
        try:
            response = await self._client.request(
                method,
                f"{path}?{urlencode([*params])}" if params else path,
                content=content,
                headers=sent,
                timeout_s=timeout_s or TIMEOUT_S[self.name],
            )
        except AllBusy as error:  # all its connections are at work: that is a full service, not a dead one
            self._breaker.gave_up()
            raise UpstreamUnavailable(f"The {self.name} service is busy.", retry_after_s=1) from error
        except NoAnswer as error:
            if self._breaker.failed(time.monotonic()):
                log.warning("upstream_cut_off", upstream=self.name, error=type(error).__name__)
            raise UpstreamUnavailable(f"The {self.name} service does not answer.", retry_after_s=2) from error
        except BaseException:  # the caller went away; that says nothing of the service
            self._breaker.gave_up()
            raise
        if self._breaker.answered():
            log.info("upstream_back", upstream=self.name)
        if _refuses_us(response):
            log.error("service_token_refused", upstream=self.name)
            raise UpstreamUnavailable(f"The {self.name} service does not know us.", retry_after_s=5)
        if response.status_code >= 500 and response.status_code != 503:  # noqa: PLR2004 - 503 explains itself
            raise UpstreamUnavailable(f"The {self.name} service failed.", retry_after_s=2)
        return response

    def _token(self, identity: Identity | None, *, is_admin: bool, role: str | None) -> str:
        """Signed anew for each user every 20 s: that costs as much as the rest of a call."""
        bearer = (
            (None, "", None, None, is_admin, role)
            if identity is None
            else (
                identity.subject,
                identity.email,
                identity.claims.get("is_anonymous"),
                identity.claims.get("api_key_id"),
                is_admin,
                role,
            )
        )
        now_s = time.monotonic()
        kept = self._tokens.get(bearer)
        if kept is not None and kept[0] > now_s:
            return kept[1]
        if len(self._tokens) >= _TOKENS:
            self._tokens.clear()
        user = _claims(identity, is_admin=is_admin, role=role)
        token = service_tokens.mint(self._secret, issuer="gateway", audience=self.name, user=user)
        self._tokens[bearer] = (now_s + TOKEN_KEPT_S, token)
        return token


def _claims(identity: Identity | None, *, is_admin: bool, role: str | None) -> Mapping[str, Any] | None:
    """Whom a call is made for; None when the gateway asks for itself."""
    if role is not None:
        return {"role": role}
    if identity is None:
        return None
    return {**identity.user_claims, "is_admin": True} if is_admin else identity.user_claims


def _refuses_us(response: Answer) -> bool:
    """Whether it is our token that is refused; any other 401, as for a webhook's signature, is the sender's to mend."""
    if response.status_code != HTTPStatus.UNAUTHORIZED:
        return False
    return response.json().get("code") == ServiceTokenRefused.code


class _PassedBack(Response):
    """Starlette's, without decoding and encoding headers that came as they leave."""

    def __init__(self, answer: Answer) -> None:
        self.status_code = answer.status_code
        self.background = None
        self.body = answer.content
        self.raw_headers = [pair for pair in answer.raw_headers if pair[0] in _PASSED_BACK]
        if answer.status_code not in _WITHOUT_BODY:
            self.raw_headers.append((b"content-length", b"%d" % len(answer.content)))


def pass_back(response: Answer) -> Response:
    """Our answer is the service's: status and body as they are, and only the headers meant for clients."""
    return _PassedBack(response)


@asynccontextmanager
async def open_upstream(name: Name, *, base_url: str, secret: str) -> AsyncGenerator[Upstream, None]:
    # Few connections: one service needs no more at once.
    async with open_client(
        base_url, max_connections=MAX_CONNECTIONS, connect_s=CONNECT_S, keep_alive_s=KEEP_ALIVE_S
    ) as client:
        yield Upstream(name, client=client, secret=secret)
