"""Composition root of agents: settings in, running parts out, all closed on exit."""

import asyncio
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from libs.common import redis
from libs.common.backbone import open_backbone
from libs.common.clock import Clock, system_clock
from libs.common.database import Database
from libs.common.ids import new_id
from libs.common.plans import Plans, load_plans
from libs.common.process import Service
from services.agents.background import api as background_api
from services.agents.consumers import subscriptions
from services.agents.health import Checks
from services.agents.offline_model import OfflineModel
from services.agents.ports import ChooseModel
from services.agents.prompts import api as prompts_api
from services.agents.redis_mirror import RedisMirror
from services.agents.runs import api as runs_api
from services.agents.runs.execution import Engine
from services.agents.runs.jobs import RunWorker
from services.agents.runs.lease_queries import Caps
from services.agents.settings import Settings


@asynccontextmanager
async def build(
    settings: Settings, *, models: ChooseModel | None = None, clock: Clock = system_clock
) -> AsyncGenerator[Service, None]:
    plans = load_plans()
    wake = asyncio.Event()
    async with (
        open_backbone(settings, service="agents", subscriptions=subscriptions(wake=wake.set), clock=clock) as backbone,
        redis.connect(settings.redis_url.get_secret_value(), name="agents") as client,
    ):
        mirror = RedisMirror(client)
        worker = _worker(
            settings, database=backbone.database, mirror=mirror, models=models or _offline, plans=plans, wake=wake
        )
        checks = [*backbone.checks(), *Checks(database=backbone.database, mirror=mirror).all()]
        app = backbone.new_app(checks)
        app.include_router(runs_api.Routes(database=backbone.database, mirror=mirror).router())
        app.include_router(prompts_api.Routes(database=backbone.database).router())
        app.include_router(background_api.Routes(database=backbone.database, plans=plans, clock=clock).router())
        yield Service(
            name="agents",
            app=backbone.edge(app),
            health_app=backbone.health_app(checks),
            common_loops=(*backbone.common_loops, mirror.run),
            worker_loops=(*backbone.worker_loops, worker.run, worker.watch),
        )


def _worker(
    settings: Settings,
    *,
    database: Database,
    mirror: RedisMirror,
    models: ChooseModel,
    plans: Plans,
    wake: asyncio.Event,
) -> RunWorker:
    return RunWorker(
        name=f"{socket.gethostname()}:{os.getpid()}:{new_id()}",
        engine=Engine(
            database=database,
            mirror=mirror,
            choose_model=models,
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


def _offline(_requested: str | None) -> OfflineModel:
    """Whatever a run asks for, until providers are configured: `model_used` tells what it got."""
    return OfflineModel()
