"""What agents' tests say often: run the service with a model that is told what to do, ask for a run, look at it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import orjson

from libs.common import database as db
from libs.common.broker import BrokerPublisher, BrokerUnavailable, open_publisher
from libs.common.clock import iso_millis, system_clock
from libs.common.database import Database
from libs.common.events import Envelope, Event
from libs.common.events.gateway import EntitlementsChanged, RunRequested
from libs.common.ids import new_id
from services.agents import consumers
from services.agents.ports import ModelOutput, ModelWish, Round, TextDelta, ToolSpec, UsageReport
from services.agents.prompts.domain import Prompt
from services.agents.runs.domain import Usage
from services.agents.settings import Settings
from services.agents.wiring import build
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.services import Place, RunningService, run_service, service_headers

TERMINAL = {"run.succeeded", "run.failed", "run.cancelled", "run.timed_out"}
REPORTED = Usage(input_tokens=11, output_tokens=7, cost_micro_usd=1_234)


@dataclass
class FakeModel:
    """Says `pieces`, then waits for `go_on`, says `last_pieces`, and reports its usage or raises `failure`."""

    pieces: list[str] = field(default_factory=lambda: ["Hello ", "there."])
    last_pieces: list[str] = field(default_factory=list[str])
    usage: Usage | None = REPORTED
    failure: Exception | None = None
    waits: bool = False
    go_on: asyncio.Event = field(default_factory=asyncio.Event)
    prompts: list[Prompt] = field(default_factory=list[Prompt])
    at_work: int = 0
    most_at_work: int = 0

    @property
    def name(self) -> str:
        return "fake-1"

    def choose(self, _wish: ModelWish) -> "FakeModel":
        return self

    async def stream(
        self,
        prompt: Prompt,
        *,
        max_output_tokens: int,  # noqa: ARG002 - the port's signature, as are the next two
        tools: Sequence[ToolSpec] = (),  # noqa: ARG002
        rounds: Sequence[Round] = (),  # noqa: ARG002
    ) -> AsyncGenerator[ModelOutput, None]:
        self.prompts.append(prompt)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            for piece in self.pieces:
                yield TextDelta(text=piece)
            if self.waits:
                await self.go_on.wait()
            for piece in self.last_pieces:
                yield TextDelta(text=piece)
            if self.usage is not None:
                yield UsageReport(usage=self.usage)
            if self.failure is not None:
                raise self.failure
        finally:
            self.at_work -= 1


def agents(
    place: Place, model: FakeModel | None = None, **overrides: Any
) -> AbstractAsyncContextManager[RunningService]:
    settings = place.settings_for(Settings, "agents", **overrides)
    return run_service(build(settings, models=model.choose if model else None))


@asynccontextmanager
async def agents_database(test_database: TestDatabase) -> AsyncGenerator[Database, None]:
    async with db.connect(test_database.url("venture_agents"), application_name="test-agents") as database:
        yield database


def a_request(user_id: UUID, **facts: Any) -> RunRequested:
    values: dict[str, Any] = {
        "run_id": new_id(),
        "task": "Plan the launch of our invoice reminder for small agencies.",
        "max_output_tokens": 1_000,
        **facts,
    }
    return RunRequested(user_id=user_id, **values)


async def request_run(database: Database, user_id: UUID, **facts: Any) -> UUID:
    """Hand the event to its consumer as the runner would, without the broker in between."""
    event = a_request(user_id, **facts)
    async with database.transaction() as conn:
        await consumers.on_run_requested(event, conn)
    return event.run_id


async def set_tier(database: Database, user_id: UUID, tier: str, *, version: int = 2) -> None:
    async with database.transaction() as conn:
        event = EntitlementsChanged(user_id=user_id, version=version, tier=tier, status="active")
        await consumers.on_entitlements_changed(event, conn)


async def run_row(test_database: TestDatabase, run_id: UUID) -> dict[str, Any]:
    return (await test_database.fetch("SELECT * FROM agent_runs WHERE id = $1", run_id))[0]


async def has_status(test_database: TestDatabase, run_id: UUID, *statuses: str, within_s: float = 10) -> dict[str, Any]:
    async def probe() -> dict[str, Any] | None:
        row = await run_row(test_database, run_id)
        return row if row["status"] in statuses else None

    row = await eventually(probe, within_s=within_s)
    assert row is not None
    return row


async def stream_of(test_database: TestDatabase, run_id: UUID) -> list[dict[str, Any]]:
    return await test_database.fetch(
        "SELECT seq, type, data, created_at FROM agents.run_events WHERE run_id = $1 ORDER BY seq", run_id
    )


def text_of(events: list[dict[str, Any]]) -> str:
    """What a client shows: each further `run.started` discards what came before."""
    text = ""
    for event in events:
        if event["type"] == "run.started":
            text = ""
        elif event["type"] == "run.delta":
            text += event["data"]["text"]
    return text


async def emitted(test_database: TestDatabase, event_type: str) -> list[dict[str, Any]]:
    rows = await test_database.fetch("SELECT data FROM agents.outbox WHERE type = $1 ORDER BY id", event_type)
    return [row["data"] for row in rows]


async def get(service: RunningService, user_id: UUID, path: str, **query: Any) -> Any:
    answer = await service.client.get(path, params=query, headers=service_headers("agents", user_id=user_id))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def send(place: Place, event: Event, *, sender: str = "gateway") -> None:
    """Publish an event as its owner's relay would, once its queue is there."""
    envelope = Envelope(
        id=event.event_id, type=event.type, source=sender, time=system_clock(), data=event.model_dump(mode="json")
    )
    async with open_publisher(place.amqp_url(sender), name="test") as publisher:
        await eventually(lambda: _publish(publisher, envelope))


async def _publish(publisher: BrokerPublisher, envelope: Envelope) -> bool:
    body = {**envelope.model_dump(mode="json"), "time": iso_millis(envelope.time)}
    try:
        await publisher.publish_event(
            routing_key=envelope.type, body=orjson.dumps(body), message_id=str(envelope.id), traceparent=None
        )
    except BrokerUnavailable:
        return False
    return True
