"""Composition root of agents: settings in, running parts out, all closed on exit."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
from pydantic import SecretStr

from libs.common import redis
from libs.common.backbone import open_backbone
from libs.common.clock import Clock, system_clock
from libs.common.database import Database
from libs.common.ids import new_id
from libs.common.plans import Plans, load_plans
from libs.common.process import Service
from services.agents.atoms import api as atoms_api
from services.agents.background import api as background_api
from services.agents.consumers import subscriptions
from services.agents.health import Checks
from services.agents.metering_holds import TIMEOUT_S, MeteringHolds
from services.agents.model_router import ModelRouter, Provider
from services.agents.offline_model import OfflineModel
from services.agents.ports import ChooseModel, Holds, ModelProvider, NoExtension
from services.agents.prompts import api as prompts_api
from services.agents.redis_mirror import RedisMirror
from services.agents.runs import api as runs_api
from services.agents.runs import operator_api as runs_operator_api
from services.agents.runs.execution import Engine
from services.agents.runs.ingredients import AtomShelf
from services.agents.runs.jobs import EventSweeper, RunWorker
from services.agents.runs.lease_queries import Caps
from services.agents.runs.scribe import Scribe
from services.agents.settings import Settings
from services.agents.templates import api as templates_api


@asynccontextmanager
async def build(
    settings: Settings,
    *,
    models: ChooseModel | None = None,
    holds: Holds | None = None,
    clock: Clock = system_clock,
) -> AsyncGenerator[Service, None]:
    plans = load_plans()
    wake = asyncio.Event()
    async with (
        open_backbone(settings, service="agents", subscriptions=subscriptions(wake=wake.set), clock=clock) as backbone,
        redis.connect(settings.redis_url.get_secret_value(), name="agents") as client,
        AsyncExitStack() as stack,
    ):
        mirror = RedisMirror(client)
        router = await stack.enter_async_context(_open_router(settings, plans))
        worker = _worker(
            settings,
            database=backbone.database,
            mirror=mirror,
            models=models or router.choose,
            holds=holds or await stack.enter_async_context(_open_holds(settings)),
            plans=plans,
            wake=wake,
        )
        sweeper = EventSweeper(database=backbone.database, keep_days=settings.agents_event_retention_days)
        checks = [*backbone.checks(), *Checks(database=backbone.database, mirror=mirror, router=router).all()]
        app = backbone.new_app(checks)
        app.include_router(runs_api.Routes(database=backbone.database, mirror=mirror).router())
        app.include_router(runs_operator_api.OperatorRoutes(database=backbone.database, mirror=mirror).router())
        app.include_router(prompts_api.Routes(database=backbone.database).router())
        app.include_router(templates_api.Routes(database=backbone.database).router())
        app.include_router(atoms_api.Routes(database=backbone.database).router())
        app.include_router(background_api.Routes(database=backbone.database, plans=plans, clock=clock).router())
        yield Service(
            name="agents",
            app=backbone.edge(app),
            health_app=backbone.health_app(checks),
            common_loops=(*backbone.common_loops, mirror.run),
            worker_loops=(*backbone.worker_loops, worker.run, worker.watch, sweeper.run),
        )


def _worker(
    settings: Settings,
    *,
    database: Database,
    mirror: RedisMirror,
    models: ChooseModel,
    holds: Holds,
    plans: Plans,
    wake: asyncio.Event,
) -> RunWorker:
    return RunWorker(
        name=f"{socket.gethostname()}:{os.getpid()}:{new_id()}",
        engine=Engine(
            database=database,
            scribe=Scribe(database),
            shelf=AtomShelf(database),
            mirror=mirror,
            choose_model=models,
            holds=holds,
            first_token_limit_s=settings.agents_first_token_limit_s,
            idle_limit_s=settings.agents_idle_limit_s,
            total_limit_s=settings.agents_total_limit_s,
        ),
        caps=Caps(
            by_tier={name: tier.concurrency for name, tier in plans.tiers.items()},
            default=plans.tier("free").concurrency,
        ),
        capacity=settings.agents_max_parallel_runs,
        lease_s=settings.agents_lease_s,
        heartbeat_s=settings.agents_heartbeat_s,
        shutdown_grace_s=settings.agents_shutdown_grace_s,
        wake=wake,
    )


@asynccontextmanager
async def _open_holds(settings: Settings) -> AsyncGenerator[Holds, None]:
    if settings.metering_url is None:
        yield NoExtension()
        return
    async with httpx.AsyncClient(base_url=settings.metering_url, timeout=TIMEOUT_S) as client:
        yield MeteringHolds(client, secret=settings.service_token_secret.get_secret_value())


@asynccontextmanager
async def _open_router(settings: Settings, plans: Plans) -> AsyncGenerator[ModelRouter, None]:
    """The providers whose keys are set. Without a key their libraries are not even loaded: they weigh 60 MB."""
    defaults = [name.strip() for name in settings.agents_models.split(",") if name.strip()]
    async with AsyncExitStack() as stack:
        openers: Mapping[str, Callable[[str], ModelProvider]] = {}
        if settings.openai_api_key is not None or settings.anthropic_api_key is not None:
            from services.agents.pydantic_ai_models import Access, open_models  # noqa: PLC0415 - see above

            def access(key: SecretStr | None, base_url: str | None) -> Access | None:
                return Access(api_key=key.get_secret_value(), base_url=base_url) if key is not None else None

            openers = await stack.enter_async_context(
                open_models(
                    openai=access(settings.openai_api_key, settings.openai_base_url),
                    anthropic=access(settings.anthropic_api_key, settings.anthropic_base_url),
                    silence_s=max(settings.agents_first_token_limit_s, settings.agents_idle_limit_s),
                )
            )
        slots = settings.agents_provider_parallel_calls
        yield ModelRouter(
            providers={
                name: Provider(open_model=opener, slots=asyncio.Semaphore(slots)) for name, opener in openers.items()
            },
            offline=OfflineModel(),
            plans=plans,
            defaults=defaults,
            retry_budget_s=settings.agents_retry_budget_s,
        )
