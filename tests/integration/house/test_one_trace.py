"""One trace joins a run's services and the messages between them."""

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from tests.harness.house import House
from tests.harness.patience import eventually

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
CALLER_SPAN = 0x00F067AA0BA902B7
WANTED = {
    ("gateway", "POST /v1/runs"),
    ("metering", "POST /internal/holds/together"),
    ("agents", "consume agents.gateway.run_requested.v1"),
    ("metering", "consume metering.gateway.run_requested.v1"),
    ("metering", "consume metering.agents.run_finished.v1"),
    ("gateway", "consume gateway.agents.run_finished.v1"),
    ("gateway", "consume gateway.metering.usage_settled.v1"),
}


async def test_one_trace_joins_gateway_metering_agents_and_the_messages_between(
    span_exporter: InMemorySpanExporter, house: House
) -> None:
    def spans_of_trace() -> list[tuple[SpanContext, SpanContext | None, str, str]]:
        return [
            (span.context, span.parent, str((span.attributes or {}).get("venture.service")), span.name)
            for span in span_exporter.get_finished_spans()
            if span.context is not None and format(span.context.trace_id, "032x") == TRACE_ID
        ]

    async with house.person() as ada:
        headers = {"traceparent": f"00-{TRACE_ID}-{CALLER_SPAN:016x}-01", "Prefer": "wait=20"}
        run = await ada.client.post("/v1/runs", json={"task": "Outline a pitch"}, headers=headers)
        assert run.status_code == 200, run.text

        async def joined() -> bool:
            return {(service, name) for _, _, service, name in spans_of_trace()} >= WANTED

        await eventually(joined)
    spans = spans_of_trace()
    known = {context.span_id for context, _, _, _ in spans} | {CALLER_SPAN}
    torn = [name for _, parent, _, name in spans if parent is None or parent.span_id not in known]
    assert not torn, f"spans whose parent is missing: {torn}"
