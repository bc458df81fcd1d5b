"""`venture parked`: messages that no consumer could handle: list, show, replay, discard."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, Final, TypeVar, cast

import typer

from libs.common.broker import BrokerUnavailable, ParkedMessage, ParkedMessages, open_parked
from ops.engines.definitions import SERVICES
from ops.failure import Failure
from ops.venture.database import audit
from ops.venture.desk import AsJson, Desk, DryRun, NotFound, Yes

T = TypeVar("T")
_COLUMNS: Final = ("id", "queue", "reason", "attempts", "error", "subject")
MessageId = Annotated[str, typer.Argument(help="The message's id, as `parked list` shows it.", show_default=False)]


def commands() -> typer.Typer:
    app = typer.Typer(help="Parked messages: list, show, replay, discard.", no_args_is_help=True)
    app.command("list")(list_parked)
    app.command("show")(show)
    app.command("replay")(replay)
    app.command("discard")(discard)
    return app


def with_broker(desk: Desk, work: Callable[[ParkedMessages], Awaitable[T]]) -> T:
    """Do something over a connection as the broker's operator."""
    url = desk.access.need("AMQP_URL")

    async def run() -> T:
        async with open_parked(url, consumers=SERVICES) as parked:
            return await work(parked)

    try:
        return asyncio.run(run())
    except BrokerUnavailable as error:
        raise Failure(f"The broker cannot be reached: {error.detail}. Runbook: events-not-flowing") from None


def list_parked(*, as_json: AsJson = False) -> None:
    """All parked messages, with the reason of each."""
    desk = Desk(as_json=as_json)
    found = with_broker(desk, lambda parked: parked.messages())
    desk.table([_row(message) for message in found], columns=_COLUMNS, empty="Nothing is parked.")


def show(message_id: MessageId, *, as_json: AsJson = False) -> None:
    """One message with its body."""
    desk = Desk(as_json=as_json)
    message = _one(with_broker(desk, lambda parked: parked.messages()), message_id)
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
    found = with_broker(desk, lambda parked: parked.messages())
    chosen = [message for message in found if everything or message.id == message_id]
    if chosen:
        desk.confirm(f"Send {len(chosen)} messages back to their queues?")
        audit(desk, "parked_replay", subject=message_id or "all", after={"messages": [_row(it) for it in chosen][:100]})
    if chosen and not dry_run:
        chosen = with_broker(desk, lambda parked: parked.replay(message_id))
    rows = [_row(message) for message in chosen]
    desk.report(f"{len(rows)} messages were sent back.", {"messages": rows})


def discard(message_id: MessageId, *, dry_run: DryRun = False, yes: Yes = False, as_json: AsJson = False) -> None:
    """Throw one message away for good; its body stays in the audit log."""
    desk = Desk(as_json=as_json, dry_run=dry_run, yes=yes)
    message = _one(with_broker(desk, lambda parked: parked.messages()), message_id)
    desk.confirm(f"Throw away {message_id} of {message.queue}?")
    audit(desk, "parked_discard", subject=message_id, after={**_row(message), "body": _body(message)})
    if not dry_run:
        with_broker(desk, lambda parked: parked.discard(message_id))
    desk.report(f"{message_id} is gone; the audit log keeps what it was.", _row(message))


def _one(found: list[ParkedMessage], message_id: str) -> ParkedMessage:
    for message in found:
        if message.id == message_id:
            return message
    raise NotFound(f"No message {message_id} is parked. `venture parked list` shows those that are.")


def _row(message: ParkedMessage) -> dict[str, Any]:
    body = _body(message)
    subject = cast("Mapping[str, Any]", body).get("subject") if isinstance(body, Mapping) else None
    return {
        "id": message.id,
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
