"""Logs, traces, metrics and error reports, set up once per process; nothing here ever carries a body or a secret."""

import logging
import re
import shutil
import sys
from collections.abc import Generator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, Final, cast

import orjson
import prometheus_client
import structlog
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

_propagator: Final = TraceContextTextMapPropagator()

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
DISK_FREE: Final = prometheus_client.Gauge("venture_disk_free_bytes", "Free space on the disk this process runs on.")
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


def _as_text(event: Any, **_kwargs: Any) -> str:
    return orjson.dumps(event, default=str).decode()


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
        structlog.processors.format_exc_info,
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
    for chatty in ("aio_pika", "aiormq", "httpx", "httpcore", "uvicorn.access", "asyncio"):
        logging.getLogger(chatty).setLevel(logging.ERROR)


def configure_tracing(*, service: str, version: str, environment: str, otlp_endpoint: str | None) -> None:
    """Install the process's tracer provider. Without an endpoint spans still give every log line its trace id."""
    provider = TracerProvider(
        resource=Resource.create(
            {"service.name": service, "service.version": version, "deployment.environment.name": environment}
        )
    )
    if otlp_endpoint:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - 12 MB only some need
            OTLPSpanExporter,
        )

        provider.add_span_processor(
            BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{otlp_endpoint.rstrip('/')}/v1/traces"))
        )
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
        before_send=lambda event, _hint: _prepare_report(cast("dict[str, Any]", event), service),
        before_breadcrumb=lambda crumb, _hint: scrub(crumb),
        transport=transport,
    )


def _prepare_report(event: dict[str, Any], service: str) -> Any:
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


def serve_metrics(*, host: str, port: int) -> None:
    """Expose `/metrics` on a port of its own, which no gateway route leads to. Port 0 switches it off."""
    if port:
        DISK_FREE.set_function(lambda: shutil.disk_usage("/").free)
        prometheus_client.start_http_server(port, addr=host)


def tracer() -> trace.Tracer:
    return trace.get_tracer("venture")


@contextmanager
def span(
    name: str, *, service: str, kind: SpanKind = SpanKind.INTERNAL, traceparent: str | None = None
) -> Generator[Span, None, None]:
    """Run the body inside a span; with `traceparent`, as the child of the remote one that sent it."""
    with trace.use_span(start_span(name, service=service, kind=kind, traceparent=traceparent), end_on_exit=True) as it:
        yield it


def start_span(name: str, *, service: str, kind: SpanKind, traceparent: str | None) -> Span:
    """A span for work that is done in pieces: whoever starts it enters and ends it with `use_span`."""
    parent = _propagator.extract({"traceparent": traceparent}) if traceparent else None
    return tracer().start_span(name, context=parent, kind=kind, attributes={"venture.service": service})


def current_traceparent() -> str | None:
    carrier: dict[str, str] = {}
    _propagator.inject(carrier)
    return carrier.get("traceparent")


def current_trace_id() -> str | None:
    context = trace.get_current_span().get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None
