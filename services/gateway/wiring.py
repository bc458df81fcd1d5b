"""Composition root of the gateway: settings in, running parts out, all closed on exit."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import httpx
from fastapi import FastAPI
from starlette.types import ASGIApp

from libs.common import redis
from libs.common.backbone import Backbone, open_backbone
from libs.common.clock import Clock, system_clock
from libs.common.database import Connection
from libs.common.health import Check
from libs.common.lanes import Lanes
from libs.common.plans import load_plans
from libs.common.process import Loop, Service
from services.gateway.accounts.api import AccountRoutes
from services.gateway.accounts.state import HeadWatch
from services.gateway.admin.acts import ActRoutes
from services.gateway.admin.api import AdminRoutes
from services.gateway.admin_users.api import AdminUserRoutes
from services.gateway.api_keys.api import ApiKeyRoutes
from services.gateway.api_keys.state import ApiKeyCache
from services.gateway.auth.api import AuthRoutes, SignInPolicy
from services.gateway.auth.app import build_app, mounted
from services.gateway.auth.attempts import Attempts
from services.gateway.auth.desk import Desk
from services.gateway.auth.passwords import Passwords
from services.gateway.auth.tokens import AccessTokens, ApiKeys
from services.gateway.auth_admin.api import AuthAdminRoutes
from services.gateway.checks import check_auth_failures, check_mail, check_redis
from services.gateway.codes.api import CodeRoutes, MailPolicy
from services.gateway.codes.domain import Redirects
from services.gateway.codes.operations import Links
from services.gateway.console.api import Console
from services.gateway.console.assembly import Assembled, Ingredients, assemble
from services.gateway.console.door import Access, DoorLimits, PasswordSignIn
from services.gateway.consumers import Announcer, subscriptions
from services.gateway.cors import with_cors
from services.gateway.domain import Identity
from services.gateway.exports.api import ExportRoutes
from services.gateway.factors.api import FactorRoutes
from services.gateway.feed import LiveFeed
from services.gateway.gate import Gate
from services.gateway.house import House
from services.gateway.idempotency.state import Answers
from services.gateway.jobs import Housekeeper
from services.gateway.limited.api import LimitedRoutes
from services.gateway.limited.state import LimitedRequests
from services.gateway.limits import Limit, RateLimiter
from services.gateway.mail.jobs import MailSender
from services.gateway.openapi import describe
from services.gateway.pages.api import PageRoutes
from services.gateway.passthrough import PassedRoutes
from services.gateway.project.api import Relay
from services.gateway.project.desk import ProjectDesk
from services.gateway.project.state import Project, ProjectKeys, ProjectSessions, ProjectTokens, keep_in_step
from services.gateway.queues.api import QueueRoutes
from services.gateway.queues.state import QueueDesk
from services.gateway.quotas import Quotas
from services.gateway.reference.api import ReferenceRoutes
from services.gateway.runs.api import RunRoutes
from services.gateway.runs.heads import RunHeads
from services.gateway.runs.streams import RunStreams
from services.gateway.sessions import OwnSessions, Sessions, StandingCache, Standings
from services.gateway.settings import Settings
from services.gateway.sse import StreamSlots
from services.gateway.straight import lanes
from services.gateway.switches.state import Switches
from services.gateway.upstreams import Name, Upstream, open_upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class _Live:
    """What routes and loops share besides the backbone."""

    switches: Switches
    feed: LiveFeed
    heads: HeadWatch
    run_heads: RunHeads
    standings: StandingCache
    slots: StreamSlots
    limiter: RateLimiter
    limited: LimitedRequests
    stopping: asyncio.Event
    keys: ApiKeys
    upstreams: Mapping[Name, Upstream]
    queues: QueueDesk

    @property
    def loops(self) -> tuple[Loop, ...]:
        return self.switches.run, self.feed.run, self.heads.run, self.run_heads.run, self.limited.run


@dataclass(frozen=True, slots=True, kw_only=True)
class _SignIn:
    """Who signs people in: we, or a Supabase project we relay to."""

    app: ASGIApp
    verify: Callable[[str], Awaitable[Identity]]
    sessions: Sessions
    for_console: PasswordSignIn
    keep_in_step: Callable[[Connection, Identity], Awaitable[None]] | None = None
    delete_elsewhere: Callable[[UUID], Awaitable[None]] | None = None


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
        live = await _live_parts(stack, settings, backbone, client, standings)
        stack.push_async_callback(live.feed.close)
        checks = [
            *backbone.checks(),
            check_redis(client),
            check_mail(backbone.database, is_sent=bool(settings.smtp_url.get_secret_value())),
            check_auth_failures(backbone.traffic),
        ]
        if settings.supabase_url:
            sign_in = await _sign_in_by_project(stack, settings, backbone)
        else:
            sign_in = _sign_in_by_us(settings, backbone, live)
        routes = _routes(settings, backbone=backbone, live=live, checks=checks, sign_in=sign_in)
        access = _access(settings, backbone, live, sign_in=sign_in)
        gate = _gate(routes, settings, backbone=backbone, live=live, access=access, sign_in=sign_in)
        console = _console(settings, backbone, live, access=access, checks=checks)
        yield Service(
            name="gateway",
            app=backbone.edge(Console(with_cors(gate, origins=settings.allowed_origins), console=console.app)),
            health_app=backbone.health_app(checks),
            common_loops=(
                *backbone.common_loops,
                *live.loops,
                console.traffic.run,
                *(() if sign_in.keep_in_step else (access.standings.run,)),
            ),
            worker_loops=(
                *backbone.worker_loops,
                announcer.run,
                Housekeeper(backbone.database).run,
                console.sampler.run,
                *_mail_loops(settings, backbone),
            ),
            stopping=live.stopping,
        )


async def _open_limiter(stack: AsyncExitStack, settings: Settings) -> RateLimiter:
    url = settings.redis_url.get_secret_value()
    counting = redis.connect(url, name="gateway-limits", socket_timeout_s=None)
    return RateLimiter(await stack.enter_async_context(counting))


async def _live_parts(
    stack: AsyncExitStack, settings: Settings, backbone: Backbone, client: redis.Redis, standings: StandingCache
) -> _Live:
    upstreams, feed = await _open_upstreams(stack, settings), LiveFeed(client)
    return _Live(
        switches=Switches(backbone.database, maintenance_mode=settings.maintenance_mode),
        feed=feed,
        heads=HeadWatch(backbone.database),
        run_heads=RunHeads(agents=upstreams["agents"], feed=feed),
        standings=standings,
        slots=StreamSlots(per_user=settings.streams_per_user, in_all=settings.streams_per_process),
        limiter=await _open_limiter(stack, settings),
        limited=LimitedRequests(backbone.database),
        stopping=asyncio.Event(),
        keys=ApiKeys(
            anon_key=settings.next_public_supabase_anon_key.get_secret_value(),
            service_role_key=settings.supabase_service_role_key.get_secret_value(),
            secret=settings.jwt_secret,
        ),
        upstreams=upstreams,
        queues=QueueDesk(
            database=backbone.database,
            house=House(upstreams),
            parked=backbone.parked,
            own_queues=backbone.consumer.queues,
        ),
    )


async def _open_upstreams(stack: AsyncExitStack, settings: Settings) -> dict[Name, Upstream]:
    secret = settings.service_token_secret.get_secret_value()

    async def opened(name: Name, url: str) -> Upstream:
        return await stack.enter_async_context(open_upstream(name, base_url=url, secret=secret))

    return {
        "billing": await opened("billing", settings.billing_url),
        "metering": await opened("metering", settings.metering_url),
        "agents": await opened("agents", settings.agents_url),
    }


def _routes(settings: Settings, *, backbone: Backbone, live: _Live, checks: list[Check], sign_in: _SignIn) -> ASGIApp:
    """All public routes, without the gate in front of them."""
    upstreams, agents, database = live.upstreams, live.upstreams["agents"], backbone.database
    quotas = Quotas(upstreams["metering"], upgrade_url=f"{settings.frontend_url.rstrip('/')}/pricing")
    streams = RunStreams(agents=agents, feed=live.feed, heads=live.run_heads, database=database, stopping=live.stopping)
    answers = Answers(database, secret=settings.service_token_secret.get_secret_value())
    runs = RunRoutes(
        database=database, quotas=quotas, claims=answers.claims, agents=agents, streams=streams, slots=live.slots
    )
    app = backbone.new_app(checks, openapi_url="/openapi.json")
    app.router.routes.append(mounted(sign_in.app))
    for routes in (
        AccountRoutes(
            database=database,
            standings=live.standings,
            feed=live.feed,
            heads=live.heads,
            slots=live.slots,
            stopping=live.stopping,
            delete_elsewhere=sign_in.delete_elsewhere,
        ),
        ExportRoutes(database=database, upstreams=upstreams, quotas=quotas),
        # Before the runs: /v1/runs/export is no run of that id.
        PassedRoutes(upstreams=upstreams, quotas=quotas, answers=answers),
        runs,
        ApiKeyRoutes(database=database, answers=answers),
        AdminRoutes(database=database, switches=live.switches, upstreams=upstreams),
        ActRoutes(database=database, upstreams=upstreams),
        QueueRoutes(live.queues),
        LimitedRoutes(database),
        ReferenceRoutes(version=settings.service_version),
        AdminUserRoutes(database=database, standings=live.standings),
        PageRoutes(anon_key=settings.next_public_supabase_anon_key.get_secret_value()),
    ):
        app.include_router(routes.router())
    describe(app, auth=sign_in.app if isinstance(sign_in.app, FastAPI) else None)
    return Lanes(app, [runs.lane(), *lanes(upstreams)])


async def _sign_in_by_project(stack: AsyncExitStack, settings: Settings, backbone: Backbone) -> _SignIn:
    client = await stack.enter_async_context(
        httpx.AsyncClient(base_url=settings.supabase_url, timeout=Project.TIMEOUT, follow_redirects=False)
    )
    project = Project(
        client,
        anon_key=settings.next_public_supabase_anon_key.get_secret_value(),
        service_role_key=settings.supabase_service_role_key.get_secret_value(),
    )
    keys = ProjectKeys(project, kept_s=settings.supabase_jwks_ttl_s)
    tokens = ProjectTokens(keys, issuer=settings.issuer, secret=settings.jwt_secret)
    return _SignIn(
        app=Relay(project),
        verify=tokens.verify,
        sessions=ProjectSessions(project),
        for_console=ProjectDesk(backbone.database, project, tokens).sign_in,
        keep_in_step=keep_in_step,
        delete_elsewhere=project.delete_user,
    )


def _sign_in_by_us(settings: Settings, backbone: Backbone, live: _Live) -> _SignIn:
    if settings.auth_signing_keys is None:
        raise RuntimeError("settings are checked for this: without a project there are keys of our own")
    tokens = AccessTokens(
        signing_keys=settings.auth_signing_keys.get_secret_value(),
        issuer=settings.issuer,
        ttl_s=settings.access_token_ttl_s,
    )

    async def verify(token: str) -> Identity:
        return tokens.verify(token)

    desk = Desk(
        database=backbone.database,
        passwords=Passwords(refuse_common=settings.refuses_common_passwords),
        attempts=Attempts(live.limiter, live.limited, limit=_sign_in_limit(settings, "account")),
        tokens=tokens,
        keys=live.keys,
    )
    return _SignIn(
        app=_auth_app(settings, live, desk),
        verify=verify,
        sessions=OwnSessions(backbone.database),
        for_console=desk.sign_in,
    )


def _auth_app(settings: Settings, live: _Live, desk: Desk) -> ASGIApp:
    """The application at /auth/v1."""
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
    return (MailSender(backbone.database, smtp_url=smtp_url, mail_from=settings.mail_from).run,) if smtp_url else ()


def _access(settings: Settings, backbone: Backbone, live: _Live, *, sign_in: _SignIn) -> Access:
    """Who somebody is and how often they may ask, alike for the gate and the console's door."""
    standings = Standings(
        backbone.database,
        live.standings,
        admin_user_ids=settings.admin_user_ids,
        keep_in_step=sign_in.keep_in_step,
    )
    limits = DoorLimits(
        general=Limit(
            name="general", max_requests=settings.rate_limit_max_requests, window_ms=settings.rate_limit_window_ms
        ),
        sign_in=_sign_in_limit(settings, "sign-in"),
        trusted_proxy_hops=settings.trusted_proxy_hops,
    )
    return Access(
        database=backbone.database,
        sign_in=sign_in.for_console,
        verify=sign_in.verify,
        standings=standings,
        limiter=live.limiter,
        limits=limits,
    )


def _sign_in_limit(settings: Settings, name: str) -> Limit:
    return Limit(
        name=name, max_requests=settings.auth_rate_limit_max_requests, window_ms=settings.auth_rate_limit_window_ms
    )


def _gate(
    app: ASGIApp, settings: Settings, *, backbone: Backbone, live: _Live, access: Access, sign_in: _SignIn
) -> Gate:
    return Gate(
        app,
        verify=sign_in.verify,
        keys=live.keys,
        api_keys=ApiKeyCache(backbone.database),
        standings=access.standings,
        sessions=sign_in.sessions,
        switches=live.switches,
        limiter=access.limiter,
        limited=live.limited,
        plans=load_plans(),
        general=access.limits.general,
        sign_in=access.limits.sign_in,
        groups={
            name: Limit(name=name, max_requests=max_requests, window_ms=settings.rate_limit_window_ms)
            for name, max_requests in settings.rate_limit_route_groups.items()
        },
        trusted_proxy_hops=settings.trusted_proxy_hops,
    )


def _console(
    settings: Settings,
    backbone: Backbone,
    live: _Live,
    *,
    access: Access,
    checks: list[Check],
) -> Assembled:
    """The application at /console and what feeds it."""
    ingredients = Ingredients(
        access=access,
        standing_cache=live.standings,
        switches=live.switches,
        slots=live.slots,
        upstreams=live.upstreams,
        queues=live.queues,
        public_url=settings.next_public_supabase_url,
        checks=checks,
        stopping=live.stopping,
    )
    return assemble(backbone, ingredients)
