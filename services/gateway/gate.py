"""Every request passes here once: who is it, is the house open, has it asked too often. Pure ASGI, one Redis call."""

import ipaddress
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import orjson
from fastapi import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common.errors import Unavailable, VentureError
from libs.common.http import add_headers, has_header, problem
from libs.common.plans import Plans
from services.gateway.api_keys.domain import PREFIX, ScopeMissing, allows
from services.gateway.api_keys.state import ApiKeyCache
from services.gateway.auth.errors import render, translate
from services.gateway.auth.tokens import ApiKeys
from services.gateway.deadlines import in_time
from services.gateway.domain import AccountBanned, Identity, InvalidAccessToken, RateLimited, SignInRequired
from services.gateway.limited.state import LimitedRequests
from services.gateway.limits import Limit, RateLimiter, Verdict, headers_of
from services.gateway.sessions import Sessions, Standings
from services.gateway.sse import drop_detached, run_detached
from services.gateway.switches.state import Switches

MAINTENANCE_RETRY_S: Final = 3600
MAINTENANCE_BODY: Final = orjson.dumps(
    {"error": "Service temporarily unavailable for maintenance", "retryAfter": MAINTENANCE_RETRY_S}
)
_ALWAYS_OPEN: Final = ("/health", "/webhooks/", "/billing/webhook")
_API: Final = "/v1/"
_EXPORT: Final = "/export"
_AUTH: Final = "/auth/v1"
_USAGE_EVENTS: Final = "/v1/usage/events"
# What guesses passwords or codes, or makes accounts or mail; a refresh is neither.
_SIGN_IN_PATHS: Final = tuple(
    f"{_AUTH}/{name}" for name in ("signup", "recover", "otp", "verify", "resend", "magiclink")
)


class _Limited(RateLimited):
    def __init__(self, verdict: Verdict) -> None:
        limit = verdict.limit
        super().__init__(
            f"Too many requests: {limit.max_requests} in {limit.window_ms // 1000} s are allowed here.",
            retry_after_s=verdict.retry_after_s,
            limit=limit.max_requests,
            window_s=limit.window_ms // 1000,
            policy=limit.name,
        )
        self.verdict = verdict


class Gate:
    def __init__(
        self,
        app: ASGIApp,
        *,
        verify: Callable[[str], Awaitable[Identity]],
        keys: ApiKeys,
        api_keys: ApiKeyCache,
        standings: Standings,
        sessions: Sessions,
        switches: Switches,
        limiter: RateLimiter,
        limited: LimitedRequests,
        plans: Plans,
        general: Limit,
        sign_in: Limit,
        groups: Mapping[str, Limit],
        trusted_proxy_hops: int,
    ) -> None:
        self._app = app
        self._verify = verify
        self._keys = keys
        self._api_keys = api_keys
        self._standings = standings
        self._sessions = sessions
        self._switches = switches
        self._limiter = limiter
        self._limited = limited
        self._plans = plans
        self._general = general
        self._sign_in = sign_in
        # Refreshes and one's own account: Supabase Auth's proportion, 150 for each 30 sign-ins.
        self._auth = replace(sign_in, name="auth", max_requests=5 * sign_in.max_requests)
        self._groups = groups
        self._hops = trusted_proxy_hops
        self._known_limits: dict[tuple[str, int], list[Limit]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path: str = scope.get("path", "")
        if scope["type"] != "http" or path.startswith(_ALWAYS_OPEN):
            await self._app(scope, receive, send)
            return
        if not _is_bounded(scope, path):
            told = await self._pass(scope, path, receive, send)
        else:
            told = await in_time(
                lambda heard: self._pass(scope, path, receive, heard),
                send,
                refuse=lambda error, told: _refuse(error, scope, path)(scope, receive, told),
                clear_up=lambda: drop_detached(scope),
            )
        if told is not None:
            await run_detached(scope, receive, told)

    async def _pass(self, scope: Scope, path: str, receive: Receive, send: Send) -> Send | None:
        """Let the request in and have it answered; returns how to send what is left to be streamed, if it is let in."""
        try:
            verdicts = await self._admit(scope, path)
        except _Limited as error:
            add_headers(scope, headers_of([error.verdict]))
            await _refuse(error, scope, path)(scope, receive, send)
            return None
        except VentureError as error:
            await _refuse(error, scope, path)(scope, receive, send)
            return None
        if verdicts is None:
            headers = {"Retry-After": str(MAINTENANCE_RETRY_S)}
            closed = Response(MAINTENANCE_BODY, 503, headers, media_type="application/json")
            await closed(scope, receive, send)
            return None
        if verdicts:
            add_headers(scope, headers_of(verdicts))
        await self._app(scope, receive, send)
        return send

    async def _admit(self, scope: Scope, path: str) -> list[Verdict] | None:
        """The rate limiter's verdicts, or None for a house that is closed. Raises what the caller is to be told."""
        headers: Sequence[tuple[bytes, bytes]] = scope["headers"]
        if path.startswith(_AUTH):
            return await self._admit_to_auth(scope, path, headers)
        if path == _USAGE_EVENTS and (bearer := _bearer(headers)) and self._keys.is_service_role(bearer):
            scope.setdefault("state", {})["is_service_role"] = True
            return None if self._switches.in_maintenance(_route_group(path)) else []
        identity = await self._identify(scope, headers)
        standing = await self._standings.of(identity) if identity is not None else None
        if standing is not None and identity is not None and "api_key_id" in identity.claims:
            standing = replace(standing, is_admin=False)  # a program acts as its user, never as an admin
        group = _route_group(path)
        if self._switches.in_maintenance(group) and not (standing is not None and standing.is_admin):
            return None
        state = scope.setdefault("state", {})
        if identity is None or standing is None:
            return await self._take(
                f"ip:{client_network(scope, trusted_hops=self._hops)}", group, *self._limits_of(group, factor=1)
            )
        if standing.is_banned:
            raise AccountBanned("This account is banned.")
        state["identity"], state["standing"], state["sessions"] = identity, standing, self._sessions
        factor = self._plans.tier(standing.tier).rate_factor
        return await self._take(identity.subject, group, *self._limits_of(group, factor=factor))

    async def _admit_to_auth(
        self, scope: Scope, path: str, headers: Sequence[tuple[bytes, bytes]]
    ) -> list[Verdict] | None:
        bearer = _bearer(headers)
        if bearer is not None and self._keys.is_service_role(bearer):
            return []
        if self._switches.in_maintenance("auth") and not await self._is_admin(bearer):
            return None
        client = client_network(scope, trusted_hops=self._hops)
        is_sign_in = path in _SIGN_IN_PATHS or (
            path == f"{_AUTH}/token" and b"grant_type=refresh_token" not in scope["query_string"]
        )
        if is_sign_in:
            return await self._take(f"ip:{client}", "auth", self._sign_in)
        holder = await self._bearer_of_token(bearer)
        return await self._take(holder.subject if holder else f"ip:{client}", "auth", self._auth)

    async def _bearer_of_token(self, bearer: str | None) -> Identity | None:
        """Who is signed in counts for themself; anything else that came as a bearer counts for its address."""
        if bearer is None or self._keys.role_of(bearer) is not None:
            return None
        try:
            return await self._verify(bearer)
        except (InvalidAccessToken, Unavailable):
            return None

    async def _is_admin(self, bearer: str | None) -> bool:
        """An admin can refresh and end the own session while the house is closed; signing in waits for its opening."""
        identity = await self._bearer_of_token(bearer)
        try:
            return identity is not None and (await self._standings.of(identity)).is_admin
        except SignInRequired:
            return False

    async def _take(self, subject: str, group: str, *limits: Limit) -> list[Verdict]:
        """Count the request for each limit, the narrowest first: what it refuses does not count for the others."""
        verdicts: list[Verdict] = []
        for limit in limits:
            verdict = await self._limiter.take(subject, limit)
            if not verdict.allowed:
                self._limited.note(subject=subject, limit_name=limit.name, route_group=group)
                raise _Limited(verdict)
            verdicts.append(verdict)
        return verdicts

    def _limits_of(self, group: str, *, factor: int) -> list[Limit]:
        named = group if group in self._groups else ""
        known = self._known_limits.get((named, factor))
        if known is None:
            limits = [self._groups[named], self._general] if named else [self._general]
            known = [replace(limit, max_requests=limit.max_requests * factor) for limit in limits]
            self._known_limits[named, factor] = known
        return known

    async def _identify(self, scope: Scope, headers: Sequence[tuple[bytes, bytes]]) -> Identity | None:
        said = [value for name, value in headers if name == b"authorization"]
        if len(said) > 1:
            raise SignInRequired("Send one Authorization header.")
        bearer = _after_bearer(said[0]) if said else None
        # supabase-js sends the anon key as the bearer of whoever is not signed in.
        if bearer is None or self._keys.role_of(bearer) == "anon":
            return None
        if bearer.startswith(PREFIX):
            return await self._identify_program(scope, bearer)
        return await self._verify(bearer)

    async def _identify_program(self, scope: Scope, secret: str) -> Identity:
        holder = await self._api_keys.holder(secret)
        group = _route_group(scope["path"])
        if not allows(holder.scopes, route_group=group, method=scope["method"]):
            raise ScopeMissing(f"This API key may not do this: {group} is not in its scopes.", route_group=group)
        return holder.identity


def client_network(scope: Scope, *, trusted_hops: int) -> str:
    """The client's network: an IPv4 address or an IPv6 /64. Only as many proxy hops are believed as are ours."""
    address = scope["client"][0] if scope.get("client") else "unknown"
    if trusted_hops:
        chain = [
            part.strip()
            for name, value in scope["headers"]
            if name == b"x-forwarded-for"
            for part in value.decode("latin-1").split(",")
        ]
        if len(chain) >= trusted_hops:
            address = chain[-trusted_hops]
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "unknown"
    return str(ipaddress.ip_network((ip, 64), strict=False)) if ip.version == 6 else str(ip)  # noqa: PLR2004


def _bearer(headers: Sequence[tuple[bytes, bytes]]) -> str | None:
    return _after_bearer(next((value for name, value in headers if name == b"authorization"), b""))


def _after_bearer(value: bytes) -> str | None:
    return value[7:].decode("latin-1") if value[:7].lower() == b"bearer " else None


def _route_group(path: str) -> str:
    """The part of the house a path belongs to: `/v1/runs/…` is `runs`."""
    parts = path.split("/", 3)
    return parts[2] if len(parts) > 2 and parts[1] == "v1" else "pages"  # noqa: PLR2004


def _is_bounded(scope: Scope, path: str) -> bool:
    """Whether an answer is promised in seconds: not to whoever asks to wait for it, or for everything there is."""
    if path.startswith(_AUTH):
        return True
    if not path.startswith(_API) or path.endswith(_EXPORT):
        return False
    return not has_header(scope, b"prefer")


def _refuse(error: VentureError, scope: Scope, path: str) -> Response:
    if not path.startswith(_AUTH):
        return problem(error)
    version = next(
        (value.decode("latin-1") for name, value in scope["headers"] if name == b"x-supabase-api-version"), None
    )
    response = render(translate(error), api_version=version)
    if error.retry_after_s is not None:
        response.headers["Retry-After"] = str(error.retry_after_s)
    return response
