"""Fixtures shared by all tests. Servers start once a session; with several workers the controller starts them."""

from collections.abc import AsyncGenerator, Generator, Mapping
from contextlib import ExitStack
from typing import Any, Final

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from libs.common.logs import configure_logging
from ops.stack.stack import Stack
from tests.harness.database import TestDatabase, new_database
from tests.harness.servers import Servers, start_servers
from tests.harness.services import Place

STACK_SETTINGS: Final[Mapping[str, str]] = {"AUTH_RATE_LIMIT_MAX_REQUESTS": "100000"}
"""One address signs up more people in five minutes here than anywhere else."""


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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--screenshots", default="", help="keep what the browser saw in this folder (docs/img)")
    parser.addoption("--seed", type=int, default=0, help="repeat a fault test's schedule by the seed it printed")
    parser.addoption(
        "--rewrite-expected", action="store_true", help="take what tests/security finds as the reviewed table"
    )


def pytest_configure(config: pytest.Config) -> None:
    configure_logging(service="tests", level="WARNING")
    workers = getattr(config.option, "numprocesses", None)
    if workers and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SharedServers(workers), "shared-servers")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that bring up a whole stack share one: all of them run in the same worker (`--dist loadgroup`)."""
    for item in items:
        if {"e2e", "faults"} & set(item.path.parts):
            item.add_marker(pytest.mark.xdist_group("stack"))


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


def _place(database: TestDatabase, worker_id: str) -> Place:
    number = int(worker_id.removeprefix("gw")) if worker_id != "master" else 0
    return Place(database=database, vhost=database.servers.vhosts[number], redis_number=number)


@pytest.fixture
async def place(test_database: TestDatabase, worker_id: str) -> AsyncGenerator[Place, None]:
    """Database, vhost and Redis database for the services of one test; the vhost is swept afterwards."""
    place = _place(test_database, worker_id)
    yield place
    await place.delete_queues()


@pytest.fixture(scope="module")
async def lasting_place(servers: Servers, worker_id: str) -> AsyncGenerator[Place, None]:
    """The same for a whole file, whose tests look at one house from many sides and do not count what others left."""
    async with new_database(servers) as database:
        place = _place(database, worker_id)
        yield place
        await place.delete_queues()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack, None, None]:
    """A whole stack as `make up` brings it up, in a home of its own beside the developer's; one a session."""
    stack = Stack(tmp_path_factory.mktemp("stack") / "home")
    try:
        stack.up(settings=STACK_SETTINGS)
        yield stack
    finally:
        stack.wipe()


@pytest.fixture(scope="session")
def environment(stack: Stack) -> Mapping[str, str]:
    """What `make env` prints for the stack under test."""
    return stack.environment()


@pytest.fixture(scope="session")
def span_exporter() -> InMemorySpanExporter:
    """Every span of this process, whichever service made it. One provider a process: the first one set stays."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter
