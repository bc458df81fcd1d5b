"""Composition root of metering: settings in, running parts out, all closed on exit."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from libs.common.backbone import open_backbone
from libs.common.clock import Clock, system_clock
from libs.common.process import Service
from services.metering.consumers import SUBSCRIPTIONS
from services.metering.settings import Settings


@asynccontextmanager
async def build(settings: Settings, *, clock: Clock = system_clock) -> AsyncGenerator[Service, None]:
    async with open_backbone(settings, service="metering", subscriptions=SUBSCRIPTIONS, clock=clock) as backbone:
        checks = backbone.checks()
        app = backbone.new_app(checks)
        yield Service(
            name="metering",
            app=backbone.edge(app),
            health_app=backbone.health_app(checks),
            common_loops=backbone.common_loops,
            worker_loops=backbone.worker_loops,
        )
