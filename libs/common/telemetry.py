"""Logs, traces, metrics and error reports, set up once per process; nothing here ever carries a body or a secret."""

import logging
import re
import shutil
import sys
import traceback
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, cast

import orjson
import prometheus_client
import structlog
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from libs.common.clock import iso_micros, system_clock
from libs.common.errors import VentureError

_propagator: Final = TraceContextTextMapPropagator()
_ids: Final = RandomIdGenerator()
# Looked up once: it stands for the provider's own as soon as there is one.
_tracer: Final = trace.get_tracer("venture")

REQUESTS: Final = prometheus_client.Histogram(
    "http_server_request_duration_seconds",
    "Until an answer began, by service, matched route (` wait`: the client asked to wait for a result) and status.",
    ["service", "route", "method", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2, 5, 30),
)
MESSAGES: Final = prometheus_client.Histogram(
    "messages_handled_duration_seconds",
    "Messages handled, by queue and outcome (done, duplicate, retried, parked).",
    ["queue", "outcome"],
    buckets=(0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5, 30),
)
CHECK_OK: Final = prometheus_client.Gauge(
    "venture_check_ok",
    "Whether a check of /health/ready holds (1, also when switched off) or not (0).",
    ["service", "check"],
)
CHECK_VALUE: Final = prometheus_client.Gauge(
    "venture_check_value",
    "What a check of /health/ready measured, in the unit its name ends with.",
    ["service", "check"],
)
DISK_FREE: Final = prometheus_client.Gauge(
    "venture_disk_free_bytes", "Free space on the fullest of the disks where the stack keeps its data."
)
EVENTS: Final = prometheus_client.Counter(
    "venture_events",
    "Business facts told to the other services, by type and outcome where there is one.",
    ["type", "outcome"],
)
EVENT_SUMS: Final = prometheus_client.Counter(
    "venture_event_amounts",
    "Sums of amounts that those facts carry, such as tokens, cost and money.",
    ["type", "field"],
)

# The net below the rule "log no secrets": what looks like one is masked wherever it turns up.
_SECRET_KEYS: Final = re.compile(r"password|secret|token|authorization|apikey|api_key|cookie|signature", re.IGNORECASE)
_SECRET_VALUES: Final = re.compile(
    r"(sk|rk|whsec|vc)_[A-Za-z0-9_]{6,}|eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*|//[^/\s:@]+:[^/\s@]+@"
)


# Error reports leave the house: there no address of a person may be either.
_PERSONAL_VALUES: Final = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}")
_PERSONAL_KEYS: Final = re.compile(r"email|phone|ip_address|username|remote_addr", re.IGNORECASE)


def scrub(value: Any) -> Any:
    """As `redact`, and personal data besides."""
    if isinstance(value, str):
        return _PERSONAL_VALUES.sub("[redacted]", _SECRET_VALUES.sub("[redacted]", value))
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {
            key: "[redacted]"
            if item and (_SECRET_KEYS.search(str(key)) or _PERSONAL_KEYS.search(str(key)))
            else scrub(item)
            for key, item in items
        }
    if isinstance(value, list | tuple):
        return [scrub(item) for item in cast("list[Any]", value)]
    return value


def redact(value: Any) -> Any:
    """Mask secrets by the name of their key or by their shape, at any depth."""
    if isinstance(value, str):
        return _SECRET_VALUES.sub("[redacted]", value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {key: "[redacted]" if _SECRET_KEYS.search(str(key)) and item else redact(item) for key, item in items}
    if isinstance(value, list | tuple):
        return [redact(item) for item in cast("list[Any]", value)]
    return value


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key: "[redacted]" if _SECRET_KEYS.search(key) and value else redact(value) for key, value in event.items()}


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = format(context.trace_id, "032x")
    return event


def describe_error(error: BaseException) -> str:
    """Where it happened and what kind it is, causes first; its text only where it was written to be shown.

    Other errors' texts repeat data: `Key (email)=(...) already exists`, `invalid literal for int(): '...'`.
    """
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        name = f"{type(current).__module__}.{type(current).__qualname__}"
        said = f": {current.detail}" if isinstance(current, VentureError) else ""
        inner = "".join(f"\n| {describe_error(part)}" for part in _parts_of(current))
        parts.append("".join(traceback.format_tb(current.__traceback__)) + name + said + inner)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "\n\n".join(reversed(parts))


def _parts_of(error: BaseException) -> Sequence[BaseException]:
    return cast("BaseExceptionGroup[BaseException]", error).exceptions if isinstance(error, BaseExceptionGroup) else ()


def _tell_error(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    info = event.pop("exc_info", None)
    if isinstance(info, tuple):
        info = cast("tuple[Any, ...]", info)[1]
    error = info if isinstance(info, BaseException) else sys.exc_info()[1] if info else None
    if error is not None:
        event["exception"] = describe_error(error)
    return event


def _as_text(event: Any, **_kwargs: Any) -> str:
    return orjson.dumps(event, default=str).decode()


_write_line: Callable[[str, dict[str, Any]], None] | None = None


def log_request(*, method: str, route: str, status: int, duration_ms: float, request_id: str) -> None:
    """The one line of log a request has, written past structlog and logging: those cost 0.03 ms of the 0.2 of a read.

    Of its values only the id comes from outside, so it alone is looked at for what must not be shown.
    """
    if _write_line is not None:
        said = {"method": method, "route": route, "status": status, "duration_ms": duration_ms}
        _write_line("request", {**said, "request_id": _SECRET_VALUES.sub("[redacted]", request_id)})


def log_handled(*, queue: str, outcome: str, message_id: str) -> None:
    """The one line of log a message has; as for a request."""
    if _write_line is not None:
        shown = _SECRET_VALUES.sub("[redacted]", message_id)
        _write_line("message_handled", {"queue": queue, "outcome": outcome, "message_id": shown})


def configure_logging(*, service: str, level: str) -> None:
    """One JSON object a line on stdout, for our loggers and for the libraries'."""

    def add_service(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        event["service"] = service
        return event

    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        add_service,
        _add_trace,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _tell_error,
        _redact_event,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_as_text),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level.upper())

    global _write_line  # noqa: PLW0603 - as the root logger, there is one in a process
    _write_line = _line_writer(handler, service=service) if root.isEnabledFor(logging.INFO) else None
    for chatty in ("aio_pika", "aiormq", "httpx", "httpcore", "uvicorn.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def _line_writer(handler: "logging.StreamHandler[Any]", *, service: str) -> Callable[[str, dict[str, Any]], None]:
    def write(event: str, fields: dict[str, Any]) -> None:
        said = {
            "event": event,
            **fields,
            "level": "info",
            "service": service,
            "trace_id": current_trace_id(),
            "timestamp": iso_micros(system_clock()),
        }
        stream = handler.stream
        stream.write(f"{_as_text(said)}\n")
        stream.flush()

    return write


class _NamingTracer(trace.NoOpTracer):
    """Spans that have ids and record nothing. The SDK's own take a tenth of a read at the gateway to do the same."""

    def start_span(self, name: str, context: Context | None = None, *_: Any, **__: Any) -> Span:
        del name
        parent = trace.get_current_span(context).get_span_context()
        trace_id = parent.trace_id if parent.is_valid else _ids.generate_trace_id()
        return trace.NonRecordingSpan(trace.SpanContext(trace_id, _ids.generate_span_id(), is_remote=False))


class _NamingProvider(trace.NoOpTracerProvider):
    def get_tracer(self, *_: Any, **__: Any) -> trace.Tracer:
        return _NamingTracer()


def configure_tracing(*, service: str, version: str, environment: str, otlp_endpoint: str | None) -> None:
    """Install the process's tracer provider.

    Without an endpoint nothing is recorded; every line of log, and every service and message behind it, still gets its
    trace id.
    """
    if not otlp_endpoint:
        trace.set_tracer_provider(_NamingProvider())
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - 12 MB only some need
        OTLPSpanExporter,
    )

    provider = TracerProvider(
        resource=Resource.create(
            {"service.name": service, "service.version": version, "deployment.environment.name": environment}
        )
    )
    exporter = OTLPSpanExporter(endpoint=f"{otlp_endpoint.rstrip('/')}/v1/traces")
    provider.add_span_processor(BatchSpanProcessor(exporter))
    trace.set_tracer_provider(provider)


def configure_sentry(*, dsn: str | None, service: str, version: str, environment: str, transport: Any = None) -> None:
    """Report unhandled errors with release, environment, service and the trace they happened in; off without a DSN.

    Scrubbed before they leave: secrets, addresses, request bodies, cookies, local variables.
    """
    if not dsn:
        return
    import sentry_sdk  # noqa: PLC0415 - 4 MB only some need

    sentry_sdk.init(
        dsn=dsn,
        release=f"venture-companion@{version}",
        environment=environment,
        server_name=service,
        send_default_pii=False,
        include_local_variables=False,
        max_request_body_size="never",
        traces_sample_rate=None,  # traces go where OTEL_EXPORTER_OTLP_ENDPOINT says; an error carries its trace's id
        before_send=lambda event, hint: _prepare_report(cast("dict[str, Any]", event), hint, service),
        before_breadcrumb=lambda crumb, _hint: scrub(crumb),
        transport=transport,
    )


def _prepare_report(event: dict[str, Any], hint: Mapping[str, Any], service: str) -> Any:
    """What leaves for the error reporter: frames and kinds, and no error's text but one written to be shown."""
    error: BaseException | None = (hint.get("exc_info") or (None, None, None))[1]
    for value in event.get("exception", {}).get("values", ()):
        is_ours = isinstance(error, VentureError) and value.get("type") == type(error).__name__
        value["value"] = error.detail if is_ours and isinstance(error, VentureError) else ""
    for name in ("user", "request"):
        event.pop(name, None)
    scrubbed: dict[str, Any] = scrub(event)
    scrubbed["tags"] = {**dict(scrubbed.get("tags") or {}), "service": service}
    trace_id = current_trace_id()
    if trace_id:
        context = trace.get_current_span().get_span_context()
        joined = {"trace_id": trace_id, "span_id": format(context.span_id, "016x"), "op": "venture"}
        scrubbed["contexts"] = {**dict(scrubbed.get("contexts") or {}), "trace": joined}
    return scrubbed


def serve_metrics(*, host: str, port: int, disks: Sequence[Path]) -> None:
    """Expose `/metrics` on a port of its own, which no gateway route leads to. Port 0 switches it off."""
    if port:
        DISK_FREE.set_function(lambda: min(shutil.disk_usage(disk).free for disk in disks))
        prometheus_client.start_http_server(port, addr=host)


def span(
    name: str, *, service: str, kind: SpanKind = SpanKind.INTERNAL, traceparent: str | None = None
) -> AbstractContextManager[Span]:
    """Run the body inside a span; with `traceparent`, as the child of the remote one that sent it."""
    return _InSpan(start_span(name, service=service, kind=kind, traceparent=traceparent), end_on_exit=True)


def in_span(it: Span, *, end_on_exit: bool = False) -> AbstractContextManager[Span]:
    """Like OpenTelemetry's `use_span`, but it keeps an error's kind alone: the text may repeat somebody's data."""
    return _InSpan(it, end_on_exit=end_on_exit)


class _InSpan(AbstractContextManager[Span]):
    """A class, because each request and each message enters one: three nested generators took a tenth of a read."""

    __slots__ = ("_end_on_exit", "_span", "_token")

    def __init__(self, it: Span, *, end_on_exit: bool) -> None:
        self._span = it
        self._end_on_exit = end_on_exit

    def __enter__(self) -> Span:
        self._token = attach(trace.set_span_in_context(self._span))
        return self._span

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _tb: TracebackType | None
    ) -> None:
        detach(self._token)
        if isinstance(error, Exception):
            self._span.set_status(Status(StatusCode.ERROR, type(error).__name__))
        if self._end_on_exit:
            self._span.end()


def start_span(name: str, *, service: str, kind: SpanKind, traceparent: str | None) -> Span:
    """A span for work that is done in pieces: whoever starts it enters and ends it with `in_span`."""
    parent = _propagator.extract({"traceparent": traceparent}) if traceparent else None
    return _tracer.start_span(name, context=parent, kind=kind, attributes={"venture.service": service})


def current_traceparent() -> str | None:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def current_trace_id() -> str | None:
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None
