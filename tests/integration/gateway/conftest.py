"""A gateway on real servers, with upstreams nobody answers: what it does by itself."""

import json
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from services.gateway.settings import Settings
from services.gateway.wiring import build
from tests.harness.gateway import gateway_settings
from tests.harness.services import Place, RunningService, run_service


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedIn:
    """A signed-up user and a client that carries the access token."""

    user_id: str
    email: str
    session: dict[str, Any]
    client: httpx.AsyncClient


@pytest.fixture
def settings(place: Place) -> Settings:
    return gateway_settings(place)


@pytest.fixture
async def gateway(settings: Settings) -> AsyncGenerator[RunningService, None]:
    async with run_service(build(settings)) as running:
        yield running


@pytest.fixture
def anon(gateway: RunningService, settings: Settings) -> httpx.AsyncClient:
    gateway.client.headers["apikey"] = settings.next_public_supabase_anon_key.get_secret_value()
    gateway.client.headers["x-supabase-api-version"] = "2024-01-01"
    return gateway.client


@pytest.fixture
async def user(anon: httpx.AsyncClient, gateway: RunningService) -> AsyncGenerator[SignedIn, None]:
    response = await anon.post("/auth/v1/signup", json={"email": "ada@example.com", "password": "correct horse"})
    assert response.status_code == 200, response.text
    session = json.loads(response.content)
    headers = {"Authorization": f"Bearer {session['access_token']}"}
    async with httpx.AsyncClient(base_url=gateway.base_url, headers=headers, timeout=10) as client:
        yield SignedIn(user_id=session["user"]["id"], email="ada@example.com", session=session, client=client)
