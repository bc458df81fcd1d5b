"""The whole house in this process: four services on real servers, wired as in production, billing without Stripe."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx

from libs.common.ids import new_id
from services.agents.settings import Settings as AgentsSettings
from services.agents.wiring import build as build_agents
from services.billing.settings import Settings as BillingSettings
from services.billing.wiring import build as build_billing
from services.gateway.settings import Settings as GatewaySettings
from services.gateway.wiring import build as build_gateway
from services.metering.settings import Settings as MeteringSettings
from services.metering.wiring import build as build_metering
from tests.harness.gateway import gateway_settings
from tests.harness.patience import eventually
from tests.harness.services import Place, RunningService, run_service


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Someone signed in, with a client that carries their access token."""

    id: str
    email: str
    session: dict[str, Any]
    client: httpx.AsyncClient


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    place: Place
    settings: GatewaySettings
    gateway: RunningService
    billing: RunningService
    metering: RunningService
    agents: RunningService

    def anon_headers(self) -> dict[str, str]:
        return {
            "apikey": self.settings.next_public_supabase_anon_key.get_secret_value(),
            "x-supabase-api-version": "2024-01-01",
        }

    @asynccontextmanager
    async def person(self, email: str | None = None) -> AsyncGenerator[Person, None]:
        """Sign somebody up."""
        email = email or f"{new_id().hex[-12:]}@example.com"
        body = {"email": email, "password": "correct horse battery"}
        response = await self.gateway.client.post("/auth/v1/signup", json=body, headers=self.anon_headers())
        if response.status_code != 200:
            raise AssertionError(f"sign-up answered {response.status_code}: {response.text}")
        session: dict[str, Any] = response.json()
        headers = {"Authorization": f"Bearer {session['access_token']}"}
        async with httpx.AsyncClient(base_url=self.gateway.base_url, headers=headers, timeout=30) as client:
            yield Person(id=session["user"]["id"], email=email, session=session, client=client)


@asynccontextmanager
async def open_house(
    place: Place, *, agents_overrides: Mapping[str, Any] | None = None, **gateway_overrides: Any
) -> AsyncGenerator[House, None]:
    async with AsyncExitStack() as stack:
        billing = await stack.enter_async_context(
            run_service(build_billing(place.settings_for(BillingSettings, "billing")))
        )
        metering = await stack.enter_async_context(
            run_service(build_metering(place.settings_for(MeteringSettings, "metering")))
        )
        agents = await stack.enter_async_context(
            run_service(build_agents(place.settings_for(AgentsSettings, "agents", **(agents_overrides or {}))))
        )
        settings = gateway_settings(
            place,
            billing_url=billing.base_url,
            metering_url=metering.base_url,
            agents_url=agents.base_url,
            **gateway_overrides,
        )
        gateway = await stack.enter_async_context(run_service(build_gateway(settings)))
        for service in (billing, metering, agents, gateway):
            await eventually(partial(_consumes, service), within_s=60)
        yield House(place=place, settings=settings, gateway=gateway, billing=billing, metering=metering, agents=agents)


async def _consumes(service: RunningService) -> bool:
    """Whether all its queues are there and consumed: what is sent before that waits for the next try of the sender."""
    checks = (await service.client.get("/health/ready")).json()["checks"]
    return any(check["name"] == "queues_with_consumer" and check["status"] == "ok" for check in checks)
