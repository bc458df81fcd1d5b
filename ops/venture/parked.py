"""`venture parked`: messages that no consumer could handle: list, show, replay, discard."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any, Final, TypeVar, cast

import typer

from libs.common.broker import (
    BrokerPublisher,
    BrokerUnavailable,
    ParkedMessage,
    ParkedMessages,
    QueueState,
    open_publisher,
    parked_queue,
    queue_name,
)
from libs.common.events import CATALOGUE
from ops.engines.definitions import SERVICES
from ops.failure import Failure
from ops.venture.database import audit
from ops.venture.desk import AsJson, Desk, DryRun, NotFound, Yes

T = TypeVar("T")
_MOST: Final = 1000
_COLUMNS: Final = ("id", "queue", "reason", "attempts", "error", "subject")
MessageId = Annotated[str, typer.Argument(help="The message's id, as `parked list` shows it.", show_default=False)]


def commands() -> typer.Typer:
    app = typer.Typer(help="Parked messages: list, show, replay, discard.", no_args_is_help=True)
    app.command("list")(list_parked)
    app.command("show")(show)
    app.command("replay")(replay)
    app.command("discard")(discard)
    return app


def with_broker(desk: Desk, work: Callable[["Broker"], Awaitable[T]]) -> T:
    """Do something as the broker's operator. Raises Failure if it cannot be reached."""
    url = desk.access.need("AMQP_URL")

    async def run() -> T:
        async with open_publisher(url, name="operator") as publisher:
            return await work(Broker(ParkedMessages(url, publisher=publisher, name="operator"), publisher))

    try:
        return asyncio.run(run())
    except BrokerUnavailable as error:
        raise Failure(f"The broker cannot be reached: {error.detail} Runbook: events-not-flowing") from None


class Broker:
    """All queues of all services at once, where services know one queue at a time."""

    def __init__(self, parked: ParkedMessages, publisher: BrokerPublisher) -> None:
        self._parked = parked
        self._publisher = publisher

    async def queues(self) -> dict[str, QueueState]:
        """Every queue that some consumer has ever declared."""
        found: dict[str, QueueState] = {}
        for service in SERVICES:
            found |= await self._parked.states(queue_name(service, event) for event in CATALOGUE)
        return found

    async def messages(self) -> list[ParkedMessage]:
        """All parked messages, oldest first in each queue; they stay where they are."""
        queues = [name for name, state in (await self.queues()).items() if state.parked]
        return [message for name in queues for message in await self._parked.look(name, limit=_MOST)]

    async def replay(self, messages: Sequence[ParkedMessage]) -> int:
        return sum([await self._parked.replay(it.queue, message_id=it.message_id) for it in messages])

    async def discard(self, message: ParkedMessage) -> int:
        return await self._parked.discard(message.queue, message_id=message.message_id)

    async def park_again(self, messages: Sequence[ParkedMessage]) -> list[str]:
        """Park those that are not parked now, as after the loss of the broker's disk; return their ids."""
        there = {message.message_id for message in await self.messages()}
        missing = [message for message in messages if message.message_id not in there]
        for message in missing:
            await self._publisher.publish(
                exchange="",
                routing_key=parked_queue(message.queue),
                body=message.body,
                message_id=message.message_id,
                headers=dict(message.headers),
            )
        return [message.message_id for message in missing]


def list_parked(*, as_json: AsJson = False) -> None:
    """All parked messages, with the reason of each."""
    desk = Desk(as_json=as_json)
    found = with_broker(desk, lambda broker: broker.messages())
    desk.table([_row(message) for message in found], columns=_COLUMNS, empty="Nothing is parked.")


def show(message_id: MessageId, *, as_json: AsJson = False) -> None:
    """One message with its body."""
    desk = Desk(as_json=as_json)
    message = _one(with_broker(desk, lambda broker: broker.messages()), message_id)
    row = {**_row(message), "body": _body(message)}
    desk.answer(row)
    desk.facts(row)


def replay(
    message_id: Annotated[str | None, typer.Argument(help="One message's id; or --all.")] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All of them.")] = False,
    dry_run: DryRun = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Send messages back to the queues they came from, once their cause is mended. Twice has one effect."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    if (message_id is None) != everything:
        raise Failure("Name one message, or --all.")
    found = with_broker(desk, lambda broker: broker.messages())
    chosen = [message for message in found if everything or message.message_id == message_id]
    if chosen:
        desk.confirm(f"Send {len(chosen)} messages back to their queues?")
        audit(desk, "parked_replay", subject=message_id or "all", after={"messages": [_row(it) for it in chosen][:100]})
    if chosen and not dry_run:
        with_broker(desk, lambda broker: broker.replay(chosen))
    rows = [_row(message) for message in chosen]
    desk.report(f"{len(rows)} messages were sent back.", {"messages": rows})


def discard(message_id: MessageId, *, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Throw one message away for good; its body stays in the audit log."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    message = _one(with_broker(desk, lambda broker: broker.messages()), message_id)
    desk.confirm(f"Throw away {message_id} of {message.queue}?")
    audit(desk, "parked_discard", subject=message_id, after={**_row(message), "body": _body(message)})
    if not dry_run:
        with_broker(desk, lambda broker: broker.discard(message))
    desk.report(f"{message_id} is gone; the audit log keeps what it was.", _row(message))


def _one(found: list[ParkedMessage], message_id: str) -> ParkedMessage:
    for message in found:
        if message.message_id == message_id:
            return message
    raise NotFound(f"No message {message_id} is parked. `venture parked list` shows those that are.")


def _row(message: ParkedMessage) -> dict[str, Any]:
    body = _body(message)
    subject = cast("Mapping[str, Any]", body).get("subject") if isinstance(body, Mapping) else None
    return {
        "id": message.message_id,
        "queue": message.queue,
        "reason": message.reason,
        "attempts": message.attempts,
        "error": message.error,
        "subject": subject,
    }


def _body(message: ParkedMessage) -> Any:
    try:
        return json.loads(message.body)
    except ValueError:
        return message.body.decode("utf-8", "replace")
