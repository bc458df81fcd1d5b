"""Billing without a Stripe key: it starts, says so, and keeps deletion working."""

from collections.abc import AsyncGenerator
from uuid import UUID

import httpx
import pytest

from services.billing.settings import Settings
from services.billing.wiring import build
from tests.harness.services import Place, run_service, service_headers


@pytest.fixture
async def client(place: Place) -> AsyncGenerator[httpx.AsyncClient, None]:
    async with run_service(build(place.settings_for(Settings, "billing"))) as running:
        yield running.client


async def test_without_a_key_routes_answer_503_and_plans_answer(client: httpx.AsyncClient, user_id: UUID) -> None:
    headers = service_headers("billing", user_id=user_id)
    for method, path in (
        ("POST", "/internal/checkout"),
        ("POST", "/internal/portal"),
        ("GET", "/internal/subscription"),
        ("GET", "/internal/invoices"),
    ):
        body = {"tier": "pro"} if path == "/internal/checkout" else None
        answer = await client.request(method, path, json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (503, "billing.disabled"), path
        assert answer.headers["Retry-After"]
    assert (await client.post("/webhooks/stripe", content=b"{}")).status_code == 503
    plans = await client.get("/internal/plans", headers=service_headers("billing"))
    assert [item["tier"] for item in plans.json()["items"]] == ["free", "pro", "pro+", "enterprise"]
    assert plans.json()["items"][1]["limits"]["runs"] == 1000
    assert plans.json()["items"][3]["limits"]["runs"] is None


async def test_readiness_calls_it_disabled_and_not_failed(client: httpx.AsyncClient) -> None:
    body = (await client.get("/health/ready")).json()
    stripe = next(check for check in body["checks"] if check["name"] == "stripe")
    assert stripe["status"] == "disabled"
    assert "stripe" not in body["failed"]


async def test_internal_routes_need_a_service_token(client: httpx.AsyncClient) -> None:
    assert (await client.get("/internal/plans")).status_code == 401
    assert (await client.get("/internal/subscription", headers=service_headers("metering"))).status_code == 401
    assert (await client.get("/internal/plans", headers=service_headers("billing"))).status_code == 200
