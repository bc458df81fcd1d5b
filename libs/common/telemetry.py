"""Traces, metrics and error reports, set up once per process; nothing here ever carries a body or a secret."""

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Final, cast

import prometheus_client
from opentelemetry import trace
from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from libs.common.errors import VentureError
from libs.common.redaction import scrub

_propagator: Final = TraceContextTextMapPropagator()
_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
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
    "Messages handled, by queue and outcome (done, duplicate, retried, parked, sent_alone).",
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
    parent = _remote_parent(traceparent) if traceparent else None
    return _tracer.start_span(name, context=parent, kind=kind, attributes={"venture.service": service})


def _remote_parent(traceparent: str) -> Context:
    """What came with a request or a message; read by hand in 2.3 µs; the propagator, in 3.9, reads the rest."""
    read = _TRACEPARENT.fullmatch(traceparent)
    if read is None:
        return _propagator.extract({"traceparent": traceparent})
    trace_id, span_id, flags = (int(part, 16) for part in read.groups())
    context = trace.SpanContext(trace_id, span_id, is_remote=True, trace_flags=trace.TraceFlags(flags))
    return trace.set_span_in_context(trace.NonRecordingSpan(context), Context())


def current_traceparent() -> str | None:
    """Of the current span, as W3C Trace Context writes it; by hand in 1.3 µs; a propagator takes 1.9."""
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def current_trace_id() -> str | None:
    return trace_id_of(trace.get_current_span())


def trace_id_of(it: Span) -> str | None:
    context = it.get_span_context()
    return format(context.trace_id, "032x") if context.is_valid else None
