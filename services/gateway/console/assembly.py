"""The console put together out of what the gateway already has."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from starlette.types import ASGIApp

from libs.common.backbone import Backbone
from libs.common.health import Check
from services.gateway.console.api import build_console
from services.gateway.console.audit import AuditRoutes
from services.gateway.console.door import Access, Door, origin_of
from services.gateway.console.entry import EntryRoutes
from services.gateway.console.jobs import HealthSampler, TrafficBook
from services.gateway.console.live import LiveParts
from services.gateway.console.maintenance import MaintenanceRoutes
from services.gateway.console.overview import OverviewRoutes
from services.gateway.console.queues import QueueRoutes
from services.gateway.console.render import View
from services.gateway.console.runs import RunPages
from services.gateway.console.state import Board
from services.gateway.console.stripe_events import StripeEventRoutes
from services.gateway.console.users import UserPages
from services.gateway.house import House, Name
from services.gateway.queues.state import QueueDesk
from services.gateway.sessions import StandingCache
from services.gateway.sse import StreamSlots
from services.gateway.switches.state import Switches
from services.gateway.upstreams import Upstream


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredients:
    """`public_url` is the address browsers know us by; `checks` are the gateway's own."""

    access: Access
    standing_cache: StandingCache
    switches: Switches
    slots: StreamSlots
    upstreams: Mapping[Name, Upstream]
    queues: QueueDesk
    public_url: str
    checks: Sequence[Check]
    stopping: asyncio.Event


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembled:
    app: ASGIApp
    traffic: TrafficBook
    sampler: HealthSampler


def assemble(backbone: Backbone, given: Ingredients) -> Assembled:
    database, clock, settings = backbone.database, backbone.clock, backbone.settings
    board = Board(upstreams=given.upstreams, own_checks=given.checks, desk=given.queues)
    door = Door(given.access, origin=origin_of(given.public_url))
    house, live = House(given.upstreams), LiveParts(door=door, slots=given.slots, stopping=given.stopping)
    view = View(clock=clock, environment=settings.environment, version=settings.service_version)
    pages = (
        OverviewRoutes(database=database, board=board, view=view, live=live, clock=clock),
        QueueRoutes(board=board, desk=given.queues, view=view, live=live),
        StripeEventRoutes(database=database, house=house, view=view),
        UserPages(database=database, house=house, standings=given.standing_cache, view=view),
        RunPages(database=database, house=house, view=view, live=live),
        MaintenanceRoutes(database=database, live_switches=given.switches, view=view),
        AuditRoutes(database=database, view=view),
    )
    entry = EntryRoutes(database=database, door=door, view=view)
    return Assembled(
        app=build_console(view=view, door=door, entry=entry, pages=pages, version=settings.service_version),
        traffic=TrafficBook(database),
        sampler=HealthSampler(database, board),
    )
