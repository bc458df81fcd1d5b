"""Fixtures shared by all tests. Servers start once a session; with several workers the controller starts them."""

from collections.abc import AsyncGenerator, Generator
from contextlib import ExitStack
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.common.telemetry import configure_logging
from tests.harness.database import TestDatabase, new_database
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place


class SharedServers:
    """Lives in xdist's controller: starts the servers when the first worker is made, ends them with the session."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._stack = ExitStack()
        self._servers: Servers | None = None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        if self._servers is None:
            self._servers = self._stack.enter_context(start_servers(workers=self._workers))
        node.workerinput["servers"] = self._servers.to_json()

    def pytest_unconfigure(self) -> None:
        self._stack.close()


def pytest_configure(config: pytest.Config) -> None:
    configure_logging(service="tests", level="WARNING")
    workers = getattr(config.option, "numprocesses", None)
    if workers and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SharedServers(workers), "shared-servers")


@pytest.fixture(scope="session")
def servers(request: pytest.FixtureRequest) -> Generator[Servers, None, None]:
    shared: dict[str, Any] | None = getattr(request.config, "workerinput", {}).get("servers")
    if shared is not None:
        yield Servers(**shared)
        return
    with start_servers(workers=1) as started:
        yield started


@pytest.fixture
async def test_database(servers: Servers) -> AsyncGenerator[TestDatabase, None]:
    async with new_database(servers) as database:
        yield database


@pytest.fixture
async def place(test_database: TestDatabase, worker_id: str) -> AsyncGenerator[Place, None]:
    """Database, vhost and Redis database for the services of one test; the vhost is swept afterwards."""
    number = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    place = Place(database=test_database, vhost=test_database.servers.vhosts[number], redis_number=number)
    yield place
    await place.delete_queues()


@pytest.fixture(scope="session")
def span_exporter() -> InMemorySpanExporter:
    """Every span of this process, whichever service made it. One provider a process: the first one set stays."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter
