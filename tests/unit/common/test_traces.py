import pytest
from opentelemetry.trace import SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from libs.common.telemetry import current_trace_id, current_traceparent, in_span, start_span

pytestmark = pytest.mark.usefixtures("span_exporter")

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def trace_of_a_span_begun_by(traceparent: str | None) -> str | None:
    with in_span(start_span("a span", service="a-service", kind=SpanKind.SERVER, traceparent=traceparent)):
        return current_trace_id()


@pytest.mark.parametrize(
    "traceparent",
    [f"00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-00", f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like"],
)
def test_a_span_belongs_to_the_trace_of_whoever_caused_it(traceparent: str) -> None:
    assert trace_of_a_span_begun_by(traceparent) == TRACE


@pytest.mark.parametrize(
    "traceparent",
    [
        None,
        "",
        "nonsense",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE.upper()}-{SPAN}-01-",
    ],
)
def test_what_names_no_trace_begins_a_new_one(traceparent: str | None) -> None:
    begun = trace_of_a_span_begun_by(traceparent)
    assert begun is not None
    assert begun != TRACE
    assert int(begun, 16) != 0


def test_what_is_passed_on_is_what_a_propagator_would_write() -> None:
    with in_span(start_span("a span", service="a-service", kind=SpanKind.SERVER, traceparent=f"00-{TRACE}-{SPAN}-01")):
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        assert current_traceparent() == carrier["traceparent"]
