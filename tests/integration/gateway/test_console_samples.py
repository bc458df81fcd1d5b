"""What the console's charts and strips are drawn from: every replica adds its traffic, one of them looks at health."""

import asyncio
from collections.abc import AsyncGenerator

import pytest

from libs.common import database as db
from libs.common.broker import ParkedMessages, open_publisher
from libs.common.database import Database
from libs.common.health import Check, Finding
from libs.common.telemetry import REQUESTS
from services.gateway.console import queries
from services.gateway.console.charts import total
from services.gateway.console.jobs import HealthSampler, TrafficBook
from services.gateway.console.state import Board
from services.gateway.house import House
from services.gateway.queues.state import QueueDesk
from tests.harness.services import Place


@pytest.fixture
async def database(place: Place) -> AsyncGenerator[Database, None]:
    url = place.database.url("venture_gateway")
    async with db.connect(url, application_name="test-console") as database:
        yield database


def answer(route: str, status: int, seconds: float, *, method: str = "GET", service: str = "gateway") -> None:
    REQUESTS.labels(service, route, method, str(status)).observe(seconds)


async def test_every_replica_adds_what_it_answered_and_nothing_twice(database: Database) -> None:
    first, second = TrafficBook(database), TrafficBook(database)
    first.begin()
    second.begin()
    answer("/v1/usage", 200, 0.02)
    answer("/v1/usage", 503, 3.0)
    answer("/auth/v1/token", 400, 0.2, method="POST")
    answer("/auth/v1/token", 429, 0.001, method="POST")
    answer("/v1/events", 200, 600.0)  # a stream: its length says nothing of our speed
    for route in ("/health/ready", "/console/users"):
        answer(route, 200, 0.1)
    answer("/internal/usage", 500, 0.1, service="metering")
    await first.tell()
    await asyncio.gather(first.tell(), second.tell())
    async with database.transaction() as conn:
        minutes = await queries.list_traffic(conn)
    seen = total(minutes.values())
    # Both books count this process, so each tells of all of it: as two replicas would of their own.
    assert (seen.requests, seen.errors, seen.attempts, seen.failures) == (10, 2, 4, 2)
    assert sum(seen.buckets) == 8


async def test_one_replica_looks_in_each_slot_and_keeps_what_it_saw(place: Place, database: Database) -> None:
    async def fails() -> Finding:
        return Finding(status="failed")

    async with open_publisher(place.amqp_url("gateway"), name="gateway") as publisher:
        parked = ParkedMessages(place.amqp_url("gateway"), publisher=publisher, name="gateway")
        checks = [Check(name="database", probe=fails, runbook="database-connection-errors")]
        desk = QueueDesk(database=database, house=House({}), parked=parked, own_queues=[])
        board = Board(upstreams={}, own_checks=checks, desk=desk)
        samplers = [HealthSampler(database, board) for _ in range(3)]
        took = await asyncio.gather(*(sampler.sample() for sampler in samplers))
    async with database.transaction() as conn:
        samples = await queries.list_samples(conn)
    # A slot may end while we look; then another one has begun, and that is one look each, too.
    assert 1 <= sum(took) == len(samples) <= 2
    assert samples[0][1]["PostgreSQL"] == "failed"
    assert samples[0][1]["gateway"] == "failed"
