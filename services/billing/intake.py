"""Stripe's deliveries in: checked, then stored together with whatever else arrives meanwhile, then answered.

Guards: a 200 leaves only after the commit that holds the event; a forgery touches neither the queue nor the database.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common.database import Database, DatabaseUnavailable
from libs.common.errors import VentureError
from services.billing import operations
from services.billing.domain import BillingDisabled
from services.billing.webhook import ForgedWebhook, WebhookEvent, check_signature, parse_event

log = structlog.get_logger(__name__)

PATH: Final = "/webhooks/stripe"
MAX_BATCH: Final = 256
PATIENCE_S: Final = 4.0
"""No answer may take longer than 5 s. What is stored after it was given up is known when Stripe delivers it again."""
_RECEIVED: Final = b'{"received":true}'


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    event: WebhookEvent
    signed_at: int
    stored: asyncio.Future[None]


class Intake:
    """Commits deliveries in groups: while one commit is on its way, those that arrive form the next.

    One writer per process; a commit costs the same for one row as for a hundred, and Stripe sends them in parallel.
    """

    def __init__(self, database: Database, *, wake: Callable[[], None]) -> None:
        self._database = database
        self._wake = wake
        self._waiting: list[_Waiting] = []
        self._arrived = asyncio.Event()

    async def store(self, event: WebhookEvent, *, signed_at: int) -> None:
        """Return once the event is committed, or was before; raises WebhookOutOfTime, DatabaseUnavailable."""
        stored = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(event=event, signed_at=signed_at, stored=stored))
        self._arrived.set()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await stored
        except TimeoutError as error:
            raise DatabaseUnavailable("The event could not be stored in time.") from error

    async def run(self) -> None:
        while True:
            await self._arrived.wait()
            batch, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
            if not self._waiting:
                self._arrived.clear()
            # Whoever gave up waiting is delivered again: storing it now would only hold up the others.
            await self._write([one for one in batch if not one.stored.done()])

    async def _write(self, batch: Sequence[_Waiting]) -> None:
        if not batch:
            return
        try:
            async with self._database.transaction() as conn:
                outcomes = await operations.record_events(conn, [(one.event, one.signed_at) for one in batch])
        except Exception as error:  # noqa: BLE001 - an edge: each delivery is answered with what became of it
            await self._fail(batch, error)
            return
        for one, outcome in zip(batch, outcomes, strict=True):
            _answer(one, outcome if isinstance(outcome, VentureError) else None)
        if any(outcome is True for outcome in outcomes):
            self._wake()

    async def _fail(self, batch: Sequence[_Waiting], error: Exception) -> None:
        """A database that is away fails them all; what one event alone is to blame for fails that one alone."""
        if len(batch) == 1 or isinstance(error, DatabaseUnavailable):
            for one in batch:
                _answer(one, error)
            return
        log.warning("webhook_batch_taken_apart", size=len(batch), error=type(error).__name__)
        for one in batch:
            await self._write([one])


def _answer(waiting: _Waiting, error: Exception | None) -> None:
    if waiting.stored.done():  # the wait was given up, or its connection is gone
        return
    if error is None:
        waiting.stored.set_result(None)
    else:
        waiting.stored.set_exception(error)


class WebhookEndpoint:
    """`POST /webhooks/stripe` as plain ASGI in front of the application: the one route that Stripe may flood.

    200 once the event is stored, and again for one that was; 400 without a trace for what is not Stripe's. Errors are
    raised to the edge, which renders them as every other route's.
    """

    path = PATH
    """What the edge names the request by, as it does with a framework's route."""

    def __init__(self, app: ASGIApp, intake: Intake | None, *, secrets: Sequence[str], is_live: bool) -> None:
        self._app = app
        self._intake = intake
        self._secrets = secrets
        self._is_live = is_live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != PATH or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = self
        if self._intake is None:
            raise BillingDisabled("Billing is switched off.", retry_after_s=3600)
        payload = await _read(receive)
        headers = [value.decode("latin-1") for name, value in scope["headers"] if name == b"stripe-signature"]
        try:
            signed_at = check_signature(payload, headers, self._secrets)
        except ForgedWebhook as error:
            log.warning("webhook_signature_refused", reason=error.detail)
            raise
        await self._intake.store(parse_event(payload, is_live=self._is_live), signed_at=signed_at)
        await Response(_RECEIVED, media_type="application/json")(scope, receive, send)


async def _read(receive: Receive) -> bytes:
    """The body's raw bytes; those of a sender who hung up are incomplete, and no signature will fit them."""
    chunks: list[bytes] = []
    while True:
        message = await receive()
        chunks.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(chunks)
