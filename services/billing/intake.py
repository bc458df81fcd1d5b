"""Stripe's deliveries in: checked, then stored together with whatever else arrives meanwhile, then answered.

Guards: a 200 leaves only after the commit that holds the event; a forgery touches neither the queue nor the database.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from libs.common.database import Database, DatabaseUnavailable
from libs.common.errors import VentureError
from libs.common.together import Together
from services.billing import operations
from services.billing.domain import BillingDisabled
from services.billing.webhook import ForgedWebhook, WebhookEvent, check_signature, parse_event

log = structlog.get_logger(__name__)

PATH: Final = "/webhooks/stripe"
MAX_BATCH: Final = 256
PATIENCE_S: Final = 4.0
"""No answer may take longer than 5 s. What is stored after it was given up is known when Stripe delivers it again."""
_RECEIVED: Final = b'{"received":true}'


class Delivery(NamedTuple):
    event: WebhookEvent
    signed_at: int


class Intake:
    """Commits deliveries in groups, one at a time; Stripe sends them in parallel."""

    def __init__(self, database: Database, *, wake: Callable[[], None]) -> None:
        self._database = database
        self._wake = wake
        self._together = Together(self._record, most=MAX_BATCH)

    async def store(self, event: WebhookEvent, *, signed_at: int) -> None:
        """Return once the event is committed, or was before; raises WebhookOutOfTime, DatabaseUnavailable."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._together.ask(Delivery(event, signed_at))
        except TimeoutError as error:
            raise DatabaseUnavailable("The event could not be stored in time.") from error

    async def _record(self, deliveries: Sequence[Delivery]) -> Sequence[bool | VentureError]:
        async with self._database.transaction() as conn:
            outcomes = await operations.record_events(conn, deliveries)
        if any(outcome is True for outcome in outcomes):
            self._wake()
        return outcomes


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
