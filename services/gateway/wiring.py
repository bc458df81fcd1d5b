"""Composition root of the gateway: settings in, running parts out, all closed on exit."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from libs.common import redis
from libs.common.backbone import Backbone, open_backbone
from libs.common.clock import Clock, system_clock
from libs.common.health import Check, Finding, at_most
from libs.common.plans import load_plans
from libs.common.process import Loop, Service
from services.gateway.accounts.api import AccountRoutes
from services.gateway.admin.api import AdminRoutes
from services.gateway.admin_users.api import AdminUserRoutes
from services.gateway.api_keys.api import ApiKeyRoutes
from services.gateway.api_keys.state import ApiKeyCache
from services.gateway.auth.api import AuthRoutes, SignInPolicy
from services.gateway.auth.app import build_app
from services.gateway.auth.desk import Desk
from services.gateway.auth.passwords import Passwords
from services.gateway.auth.tokens import AccessTokens, ApiKeys
from services.gateway.auth_admin.api import AuthAdminRoutes
from services.gateway.codes.api import CodeRoutes, MailPolicy
from services.gateway.codes.domain import Redirects
from services.gateway.codes.operations import Links
from services.gateway.consumers import Announcer, subscriptions
from services.gateway.factors.api import FactorRoutes
from services.gateway.feed import LiveFeed
from services.gateway.gate import Gate
from services.gateway.jobs import Housekeeper
from services.gateway.limits import SOCKET_TIMEOUT_S, Limit, RateLimiter
from services.gateway.mail import queries as mail
from services.gateway.mail.jobs import MailSender
from services.gateway.openapi import describe
from services.gateway.pages.api import PageRoutes
from services.gateway.passthrough import PassedRoutes
from services.gateway.runs.api import RunRoutes
from services.gateway.runs.streams import RunStreams
from services.gateway.sessions import StandingCache, Standings
from services.gateway.settings import Settings
from services.gateway.switches.state import Switches
from services.gateway.upstreams import open_upstream

MAX_MAIL_AGE_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class _Live:
    """What routes and loops share besides the backbone."""

    switches: Switches
    feed: LiveFeed
    standings: StandingCache
    stopping: asyncio.Event
    tokens: AccessTokens
    keys: ApiKeys


@asynccontextmanager
async def build(settings: Settings, *, clock: Clock = system_clock) -> AsyncGenerator[Service, None]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(redis.connect(settings.redis_url.get_secret_value(), name="gateway"))
        announcer, standings = Announcer(client), StandingCache()
        backbone = await stack.enter_async_context(
            open_backbone(
                settings,
                service="gateway",
                subscriptions=subscriptions(announcer, standings, frontend_url=settings.frontend_url),
                clock=clock,
            )
        )
        live = _live_parts(settings, backbone, client, standings)
        stack.push_async_callback(live.feed.close)
        checks = [*backbone.checks(), Check(name="redis", probe=_redis_probe(client), runbook="redis")]
        checks.append(Check(name="mail_oldest_unsent_s", probe=_mail_probe(settings, backbone), runbook="mail"))
        routes = await _routes(stack, settings, backbone, live, checks)
        counting = await stack.enter_async_context(
            redis.connect(
                settings.redis_url.get_secret_value(),
                name="gateway-limits",
                max_connections=4,
                socket_timeout_s=SOCKET_TIMEOUT_S,
            )
        )
        gate = _gate(routes, settings, backbone, live, RateLimiter(counting))
        yield Service(
            name="gateway",
            app=backbone.edge(_with_cors(gate, settings)),
            health_app=backbone.health_app(checks),
            common_loops=(*backbone.common_loops, live.switches.run, live.feed.run),
            worker_loops=(
                *backbone.worker_loops,
                announcer.run,
                Housekeeper(backbone.database).run,
                *_mail_loops(settings, backbone),
            ),
            stopping=live.stopping,
        )


def _live_parts(settings: Settings, backbone: Backbone, client: redis.Redis, standings: StandingCache) -> _Live:
    return _Live(
        switches=Switches(backbone.database, maintenance_mode=settings.maintenance_mode),
        feed=LiveFeed(client),
        standings=standings,
        stopping=asyncio.Event(),
        tokens=AccessTokens(
            signing_keys=settings.auth_signing_keys.get_secret_value(),
            issuer=settings.issuer,
            ttl_s=settings.access_token_ttl_s,
        ),
        keys=ApiKeys(
            anon_key=settings.next_public_supabase_anon_key.get_secret_value(),
            service_role_key=settings.supabase_service_role_key.get_secret_value(),
            secret=settings.supabase_jwt_secret.get_secret_value(),
        ),
    )


async def _routes(
    stack: AsyncExitStack, settings: Settings, backbone: Backbone, live: _Live, checks: list[Check]
) -> ASGIApp:
    """All public routes, without the gate in front of them."""
    secret = settings.service_token_secret.get_secret_value()
    billing = await stack.enter_async_context(open_upstream("billing", base_url=settings.billing_url, secret=secret))
    metering = await stack.enter_async_context(open_upstream("metering", base_url=settings.metering_url, secret=secret))
    agents = await stack.enter_async_context(open_upstream("agents", base_url=settings.agents_url, secret=secret))
    database = backbone.database
    streams = RunStreams(agents=agents, feed=live.feed, database=database, stopping=live.stopping)
    app = backbone.new_app(checks, openapi_url="/openapi.json")
    app.mount("/auth/v1", _sign_in(settings, backbone, live))
    for routes in (
        AccountRoutes(database=database, standings=live.standings, feed=live.feed, stopping=live.stopping),
        # Before the runs: /v1/runs/export is no run of that id.
        PassedRoutes(database=database, upstreams={"billing": billing, "metering": metering, "agents": agents}),
        RunRoutes(
            database=database,
            metering=metering,
            agents=agents,
            streams=streams,
            upgrade_url=f"{settings.frontend_url.rstrip('/')}/pricing",
        ),
        ApiKeyRoutes(database=database),
        AdminRoutes(database=database, switches=live.switches, metering=metering),
        AdminUserRoutes(database=database, standings=live.standings),
        PageRoutes(anon_key=settings.next_public_supabase_anon_key.get_secret_value()),
    ):
        app.include_router(routes.router())
    describe(app)
    return app


def _sign_in(settings: Settings, backbone: Backbone, live: _Live) -> ASGIApp:
    """The application at /auth/v1."""
    desk = Desk(database=backbone.database, passwords=Passwords(), tokens=live.tokens, keys=live.keys)
    links = Links(issuer=settings.issuer)
    redirects = Redirects(site_url=settings.frontend_url, allowed=settings.auth_redirect_urls)
    interval_s = settings.auth_mail_interval_s
    policy = SignInPolicy(
        autoconfirm=settings.auth_autoconfirm,
        anonymous=settings.auth_anonymous_enabled,
        reuse_interval=timedelta(seconds=settings.refresh_reuse_interval_s),
        mail_interval_s=interval_s,
    )
    mail_policy = MailPolicy(autoconfirm=settings.auth_autoconfirm, interval_s=interval_s)
    routes = (
        AuthRoutes(desk=desk, links=links, redirects=redirects, policy=policy),
        CodeRoutes(desk=desk, links=links, redirects=redirects, policy=mail_policy),
        AuthAdminRoutes(desk=desk, links=links, redirects=redirects),
        FactorRoutes(desk=desk),
    )
    return build_app(live.keys, routes, version=settings.service_version)


def _mail_loops(settings: Settings, backbone: Backbone) -> tuple[Loop, ...]:
    """Without a mail server letters wait, and health says so."""
    smtp_url = settings.smtp_url.get_secret_value()
    if not smtp_url:
        return ()
    return (MailSender(backbone.database, smtp_url=smtp_url, mail_from=settings.mail_from).run,)


def _mail_probe(settings: Settings, backbone: Backbone) -> Callable[[], Awaitable[Finding]]:
    async def probe() -> Finding:
        if not settings.smtp_url.get_secret_value():
            return Finding(status="disabled", value="no SMTP_URL is set")
        async with backbone.database.transaction() as conn:
            return at_most(await mail.oldest_unsent_age_s(conn), MAX_MAIL_AGE_S)

    return probe


def _gate(app: ASGIApp, settings: Settings, backbone: Backbone, live: _Live, limiter: RateLimiter) -> Gate:
    return Gate(
        app,
        tokens=live.tokens,
        keys=live.keys,
        api_keys=ApiKeyCache(backbone.database),
        standings=Standings(backbone.database, live.standings, admin_user_ids=settings.admin_user_ids),
        switches=live.switches,
        limiter=limiter,
        plans=load_plans(),
        general=Limit(
            name="general", max_requests=settings.rate_limit_max_requests, window_ms=settings.rate_limit_window_ms
        ),
        sign_in=Limit(
            name="sign-in",
            max_requests=settings.auth_rate_limit_max_requests,
            window_ms=settings.auth_rate_limit_window_ms,
        ),
        trusted_proxy_hops=settings.trusted_proxy_hops,
    )


def _with_cors(app: ASGIApp, settings: Settings) -> ASGIApp:
    """Outside the gate, so that refusals carry the headers, too: a browser shows a script no error without them."""
    return CORSMiddleware(
        app,
        allow_origins=settings.allowed_origins,
        allow_methods=["GET", "POST", "PUT", "PATCH", "DELETE"],
        allow_headers=[
            "accept",
            "apikey",
            "authorization",
            "content-type",
            "idempotency-key",
            "last-event-id",
            "prefer",
            "traceparent",
            "x-client-info",
            "x-request-id",
            "x-supabase-api-version",
        ],
        expose_headers=[
            "Link",
            "Location",
            "RateLimit",
            "RateLimit-Policy",
            "Retry-After",
            "X-Request-ID",
            "X-Supabase-Api-Version",
            "X-Total-Count",
        ],
        max_age=600,
    )


def _redis_probe(client: redis.Redis) -> Callable[[], Awaitable[Finding]]:
    async def probe() -> Finding:
        await client.ping()  # pyright: ignore[reportUnknownMemberType] - its **kwargs are untyped
        return Finding(status="ok")

    return probe
