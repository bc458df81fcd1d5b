"""One process of a service: its HTTP server and its loops in one task group, ended together.

A loop that dies takes the process with it, and the supervisor starts it afresh: half a service is never left running.
"""

import argparse
import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import structlog
import uvicorn
import uvloop
from starlette.types import ASGIApp

from libs.common import waiting
from libs.common.http_server import PunctualProtocol
from libs.common.logs import configure_logging
from libs.common.settings import CommonSettings
from libs.common.telemetry import configure_sentry, configure_tracing, serve_metrics

log = structlog.get_logger(__name__)

Mode = Literal["api", "worker", "all"]
GRACEFUL_SHUTDOWN_S: Final = 10
REQUEST_S: Final = 30.0
"""The largest body that is taken, a mebibyte, comes in this time over 300 kbit/s."""

Loop = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The running parts a composition root hands out. Loops run until they are cancelled; one that returns is an error.

    `app` answers in modes api and all; `health_app` (health routes alone) in mode worker.
    """

    name: str
    app: ASGIApp
    health_app: ASGIApp
    common_loops: Sequence[Loop] = ()
    """Run in every mode: whoever writes an outbox row also relays it."""
    worker_loops: Sequence[Loop] = ()
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when shutdown begins, before connections are waited for: open streams end themselves on it."""

    def loops(self, mode: Mode) -> list[Loop]:
        return [*self.common_loops, *(() if mode == "api" else self.worker_loops)]


Build = Callable[[Any], contextlib.AbstractAsyncContextManager[Service]]


def main(
    build: Build, load_settings: Callable[[], CommonSettings], *, service: str, argv: Sequence[str] | None = None
) -> None:
    """Entry point of every `services.<name>.main`: read settings, set up telemetry, run until a signal."""
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{service}.main", description=f"Run the {service} service of Venture Companion."
    )
    parser.add_argument(
        "mode",
        nargs="?",
        choices=["api", "worker", "all"],
        default="all",
        help="api: HTTP only; worker: consumers and background loops only; all: both in one process (default)",
    )
    mode: Mode = parser.parse_args(argv).mode
    settings = load_settings()
    configure_logging(service=service, level=settings.log_level)
    configure_tracing(
        service=service,
        version=settings.service_version,
        environment=settings.environment,
        otlp_endpoint=settings.otel_exporter_otlp_endpoint,
    )
    configure_sentry(
        dsn=settings.sentry_dsn, service=service, version=settings.service_version, environment=settings.environment
    )
    serve_metrics(host=settings.host, port=settings.metrics_port, disks=settings.disk_paths)
    try:
        uvloop.run(_run(build, settings, mode))
    except* OSError as group:
        sys.stderr.write(f"{service} cannot run: {group.exceptions[0]}\n")
        raise SystemExit(1) from None


async def _run(build: Build, settings: CommonSettings, mode: Mode) -> None:
    async with (
        build(settings) as service,
        serving(service, host=settings.host, port=settings.port, mode=mode) as running,
    ):
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, running.done.set)
        spare_the_collector()
        log.info("started", mode=mode, port=running.port)
        await running.done.wait()
        log.info("stopping")


def spare_the_collector() -> None:
    """Look for cycles less often, and never among what lives as long as the process: routes, models, modules.

    A request that makes a few ten thousand objects, such as a batch of events, would otherwise pay for walking through
    all of them again and again: a third of its time. Not less often than this, and the older generations in Python's
    own rhythm: what a failed connection leaves behind are cycles, with memory that the collector does not count.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(5_000, 10, 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A served service: the port it got, and an event that is set when its server has ended by itself."""

    port: int
    done: asyncio.Event


@asynccontextmanager
async def serving(
    service: Service, *, host: str, port: int, mode: Mode = "all", request_s: float = REQUEST_S
) -> AsyncGenerator[Running, None]:
    """Run the server and the loops while the body runs; then end streams, finish requests, stop loops, in that order.

    Port 0 takes a free one. A loop that raises ends the body, too, with that error. A request that has not come whole
    within `request_s` seconds costs its sender the connection.
    """
    done = asyncio.Event()
    app = service.health_app if mode == "worker" else service.app
    server = _Server(
        uvicorn.Config(
            app,
            host=host,
            port=port,
            http=type("_Protocol", (PunctualProtocol,), {"request_s": request_s}),
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=75,
            timeout_graceful_shutdown=GRACEFUL_SHUTDOWN_S,
        )
    )
    # Bound here, not by the server, which would answer a taken port with sys.exit deep inside the loop.
    listener = socket.create_server((host, port), backlog=2048, reuse_port=False)
    # Connections inherit it. asyncio sets it only on sockets that name their protocol, which this one does not, and
    # then the body of an answer waits 40 ms for the client to acknowledge its head. uvloop sets it in any case.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    async with asyncio.TaskGroup() as group:
        loops = [group.create_task(_forever(loop)) for loop in service.loops(mode)]
        http = group.create_task(server.serve(sockets=[listener]))
        http.add_done_callback(lambda _: done.set())
        try:
            yield Running(port=listener.getsockname()[1], done=done)
        finally:
            service.stopping.set()
            server.should_exit = True
            await asyncio.wait({http})
            await waiting.end(loops, patience_s=GRACEFUL_SHUTDOWN_S)
            listener.close()


async def _forever(loop: Loop) -> None:
    await loop()
    raise RuntimeError(f"the loop {getattr(loop, '__qualname__', loop)} ended by itself")


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Leave signals to `_run`: uvicorn's own handling raises them again and would end us before clean-up."""
        yield
