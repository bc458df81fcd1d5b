"""What every composition root starts with: database, publisher, consumer, relay, and the checks that go with them."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from fastapi import FastAPI
from starlette.types import ASGIApp

from libs.common import database as db
from libs.common import outbox
from libs.common.broker import BrokerPublisher, Consumer, ParkedMessages, Subscription, open_publisher
from libs.common.clock import Clock
from libs.common.database import Database
from libs.common.health import Check, Finding, at_most, export_checks, health_router
from libs.common.http import Edge, ServiceAuth, create_app
from libs.common.parked_api import ParkedRoutes
from libs.common.process import Loop
from libs.common.settings import CommonSettings
from libs.common.traffic import Traffic

MAX_OUTBOX_AGE_S: Final = 30
MAX_CLOCK_OFF_S: Final = 5.0
MAX_PARKED: Final = 0
MAX_ERRORS_PERCENT: Final = 5
MAX_P95_MS: Final = 2000
_FAULT: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Backbone:
    """The shared parts of one service process, open until its exit stack closes."""

    service: str
    settings: CommonSettings
    clock: Clock
    database: Database
    publisher: BrokerPublisher
    parked: ParkedMessages
    consumer: Consumer
    relay: outbox.Relay
    sweeper: outbox.Sweeper
    traffic: Traffic = field(default_factory=Traffic)
    _exported: list[Check] = field(default_factory=list[Check])

    @property
    def common_loops(self) -> Sequence[Loop]:
        return (self.relay.run, self._export_checks)

    @property
    def worker_loops(self) -> Sequence[Loop]:
        return (self.consumer.run, self.sweeper.run)

    def checks(self) -> list[Check]:
        """Database, clock, outbox, consumers and parked messages: the invariants all four services share."""
        return [
            Check(name="database", probe=self._check_database, runbook="database-connection-errors"),
            Check(name="clock_off_s", probe=self._check_clock, runbook="clocks"),
            Check(name="outbox_oldest_unsent_s", probe=self._check_outbox, runbook="events-not-flowing"),
            Check(name="queues_with_consumer", probe=self._check_consumers, runbook="events-not-flowing"),
            Check(name="parked_messages", probe=self._check_parked, runbook="parked-messages"),
            Check(name="errors_percent", probe=self._check_errors, runbook="error-rates", warns_only=True),
            Check(name="answer_p95_ms", probe=self._check_p95, runbook="api-response-times", warns_only=True),
        ]

    def health_app(self, checks: Sequence[Check]) -> ASGIApp:
        """An application with the health routes alone, for processes that only work."""
        return self.edge(self.new_app(checks))

    def new_app(self, checks: Sequence[Check], *, openapi_url: str | None = None) -> FastAPI:
        self._exported[:] = checks
        app = create_app(
            title=f"Venture Companion {self.service}", version=self.settings.service_version, openapi_url=openapi_url
        )
        app.include_router(
            health_router(
                environment=self.settings.environment,
                version=self.settings.service_version,
                clock=self.clock,
                checks=checks,
            )
        )
        app.include_router(ParkedRoutes(self.parked, self.consumer.queues).router())
        return app

    def edge(self, app: ASGIApp) -> ASGIApp:
        """Wrap an application: service tokens on `/internal`, then request ids, traces, metrics and body bounds."""
        secret = self.settings.service_token_secret.get_secret_value()
        return Edge(ServiceAuth(app, secret=secret, audience=self.service), service=self.service, traffic=self.traffic)

    async def _export_checks(self) -> None:
        await export_checks(self._exported, service=self.service)

    async def _check_errors(self) -> Finding:
        """A 503 is a refusal in good order, and counts all the same: the share tells what people meet."""
        return self.traffic.share_percent(
            of=lambda _, status: status >= _FAULT,
            among=lambda route, _: not route.startswith("/health"),
            at_most_percent=MAX_ERRORS_PERCENT,
        )

    async def _check_p95(self) -> Finding:
        return self.traffic.p95_ms(at_most_ms=MAX_P95_MS)

    async def _check_database(self) -> Finding:
        await self.database.ping()
        return Finding(status="ok")

    async def _check_clock(self) -> Finding:
        """Against the database's, by which all is judged that lasts: past this, services refuse each other's tokens."""
        async with self.database.transaction() as conn:
            off = self.clock() - await conn.fetchval("SELECT clock_timestamp()")
        return at_most(abs(off.total_seconds()), MAX_CLOCK_OFF_S)

    async def _check_outbox(self) -> Finding:
        async with self.database.transaction() as conn:
            return at_most(await outbox.oldest_unsent_age_s(conn), MAX_OUTBOX_AGE_S)

    async def _check_consumers(self) -> Finding:
        if not self.consumer.is_running:
            return Finding(status="disabled", value="this process does not consume")
        states = self.consumer.states()
        served = sum(1 for name in self.consumer.queues if name in states and states[name].consumers)
        wanted = len(self.consumer.queues)
        return Finding(status="ok" if served == wanted else "failed", value=served, threshold=wanted)

    async def _check_parked(self) -> Finding:
        if not self.consumer.is_running:
            return Finding(status="disabled", value="this process does not consume")
        return at_most(sum(state.parked for state in self.consumer.states().values()), MAX_PARKED)


@asynccontextmanager
async def open_backbone(
    settings: CommonSettings, *, service: str, subscriptions: Sequence[Subscription], clock: Clock
) -> AsyncGenerator[Backbone, None]:
    """Open the pool and prepare the broker's parts; connections to the broker are made when they are first needed."""
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(
            db.connect(settings.database_url.get_secret_value(), application_name=f"venture-{service}")
        )
        amqp_url = settings.amqp_url.get_secret_value()
        publisher = await stack.enter_async_context(
            open_publisher(amqp_url, name=service, events_per_message=settings.broker_events_per_message)
        )
        yield Backbone(
            service=service,
            settings=settings,
            clock=clock,
            database=database,
            publisher=publisher,
            parked=ParkedMessages(amqp_url, publisher=publisher, name=service),
            consumer=Consumer(
                amqp_url, service=service, subscriptions=subscriptions, database=database, publisher=publisher
            ),
            relay=outbox.Relay(database, publisher, source=service),
            sweeper=outbox.Sweeper(database),
        )
