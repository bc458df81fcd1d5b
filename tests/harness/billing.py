"""Billing in process, on a database of its own, beside an emulated Stripe that delivers to it."""

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from uuid import UUID

import httpx
import stripe

from libs.common.plans import Plans
from libs.common.process import Mode
from services.billing.settings import Settings
from services.billing.wiring import build
from tests.harness.database import TestDatabase
from tests.harness.patience import eventually
from tests.harness.services import Place, RunningService, run_service, service_headers
from tests.harness.stripe_emulator import SECRET_KEY, StripeEmulator, free_port, new_webhook_secret, stripe_emulator

PATIENCE_S: Final = 60
"""A machine that does much else may take a while; a test that passes does not wait for it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Billing:
    """The service, its Stripe and its database, with the few moves every test makes."""

    running: RunningService
    stripe: StripeEmulator
    database: TestDatabase
    settings: Settings

    @property
    def client(self) -> httpx.AsyncClient:
        return self.running.client

    async def checkout(self, user_id: UUID, tier: str = "pro", **fields: Any) -> httpx.Response:
        return await self.client.post(
            "/internal/checkout", json={"tier": tier, **fields}, headers=service_headers("billing", user_id=user_id)
        )

    async def buy(self, user_id: UUID, tier: str = "pro", *, card: str = "pm_card_visa") -> dict[str, Any]:
        """Check out and pay; return the completed session."""
        opened = await self.checkout(user_id, tier)
        assert opened.status_code == 201, opened.text
        return await self.stripe.complete(opened.json()["id"], card=card)

    async def plan(self, user_id: UUID) -> dict[str, Any]:
        answer = await self.client.get("/internal/subscription", headers=service_headers("billing", user_id=user_id))
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def plan_becomes(self, user_id: UUID, tier: str, status: str) -> dict[str, Any]:
        async def probe() -> dict[str, Any] | None:
            plan = await self.plan(user_id)
            return plan if (plan["tier"], plan["status"]) == (tier, status) else None

        plan = await eventually(probe, within_s=PATIENCE_S)
        assert plan is not None
        return plan

    async def published(self, event_type: str, user_id: UUID | None = None) -> list[dict[str, Any]]:
        rows = await self.database.fetch(
            "SELECT data FROM billing.outbox WHERE type = $1 AND ($2 = '' OR subject = $2) ORDER BY id",
            event_type,
            str(user_id) if user_id else "",
        )
        return [row["data"] for row in rows]

    async def reconcile(self, *, fix: bool = False) -> dict[str, Any]:
        """Have a comparison with Stripe made; return its report."""
        headers = service_headers("billing")
        asked = await self.client.post("/internal/admin/reconcile", json={"fix": fix}, headers=headers)
        assert asked.status_code == 202, asked.text

        async def report() -> dict[str, Any] | None:
            answer = await self.client.get(
                "/internal/admin/reconcile", params={"id": asked.json()["id"]}, headers=headers
            )
            body = answer.json()
            return body if body["run"]["finished_at"] is not None else None

        found = await eventually(report, within_s=PATIENCE_S)
        assert found is not None
        return found

    async def all_handled(self) -> None:
        """Wait until Stripe has nothing left to deliver and billing nothing left to fetch."""

        async def probe() -> bool:
            pending = (await self.stripe.look("deliveries"))["counts"]["pending"]
            unhandled = await self.database.fetchval(
                "SELECT count(*) FROM billing.stripe_events WHERE handled_at IS NULL"
            )
            due = await self.database.fetchval("SELECT count(*) FROM billing.refreshes WHERE done < wanted")
            return pending == 0 and unhandled == 0 and due == 0

        await eventually(probe, within_s=PATIENCE_S)

    async def post_webhook(self, payload: bytes, signature: str | None) -> httpx.Response:
        headers = {"Content-Type": "application/json"}
        if signature is not None:
            headers["Stripe-Signature"] = signature
        return await self.client.post("/webhooks/stripe", content=payload, headers=headers)

    def signature(self, payload: bytes, *, secret: str | None = None, timestamp: int | None = None) -> str:
        """Stripe's own signing, not ours."""
        sign = cast("Callable[..., str]", stripe.WebhookSignature.generate_signature_header)  # pyright: ignore[reportUnknownMemberType]
        return sign(payload.decode(), secret or self.stripe.webhook_secret, timestamp)


@asynccontextmanager
async def open_billing(
    place: Place,
    state: Path,
    *,
    delivers: bool = True,
    plans: Plans | None = None,
    flags: Sequence[str] = (),
    mode: Mode = "all",
) -> AsyncGenerator[Billing, None]:
    """`flags` are the emulator's. Stripe is called as fast as it answers."""
    port, secret = free_port(), new_webhook_secret()
    settings = place.settings_for(
        Settings,
        "billing",
        stripe_secret_key=SECRET_KEY,
        stripe_webhook_secret=secret,
        stripe_api_base=f"http://127.0.0.1:{port}",
        stripe_calls_per_s=500,
        frontend_url="https://app.example.com",
    )
    async with run_service(build(settings, plans=plans), mode=mode) as running:
        webhook_url = f"{running.base_url}/webhooks/stripe" if delivers else None
        async with stripe_emulator(
            state, port=port, webhook_secret=secret, webhook_url=webhook_url, flags=flags
        ) as emulator:
            yield Billing(running=running, stripe=emulator, database=place.database, settings=settings)
