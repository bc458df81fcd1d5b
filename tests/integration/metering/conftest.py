"""The running service, a user, and calls as the gateway makes them."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest

from libs.common import service_tokens
from libs.common.ids import new_id
from services.metering.settings import Settings
from services.metering.wiring import build
from tests.harness.services import SERVICE_TOKEN_SECRET, Place, RunningService, run_service, service_headers


@pytest.fixture
async def metering(place: Place) -> AsyncGenerator[RunningService, None]:
    async with run_service(build(place.settings_for(Settings, "metering"))) as service:
        yield service


@pytest.fixture
async def user_id() -> UUID:
    return new_id()


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """Metering as the gateway and the operators' command line call it."""

    client: httpx.AsyncClient

    async def as_user(self, user_id: UUID, method: str, path: str, *, status: int = 200, **kwargs: Any) -> Any:
        headers = service_headers("metering", user_id=user_id)
        return await self._call(method, path, status, headers=headers, **kwargs)

    async def as_operator(self, method: str, path: str, *, status: int = 200, **kwargs: Any) -> Any:
        token = service_tokens.mint(SERVICE_TOKEN_SECRET, issuer="ops", audience="metering")
        headers = {"Authorization": f"Bearer {token}", "X-Actor": "ada"}
        return await self._call(method, f"/internal/admin{path}", status, headers=headers, **kwargs)

    async def report(self, *events: dict[str, Any], user_id: UUID | None = None, status: int = 200) -> Any:
        """Send events with the API key of this user, or as the service role."""
        user = {"role": "service_role"}
        if user_id is not None:
            user = {"sub": str(user_id), "role": "authenticated", "api_key_id": str(new_id())}
        token = service_tokens.mint(SERVICE_TOKEN_SECRET, issuer="gateway", audience="metering", user=user)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/cloudevents-batch+json"}
        return await self._call(
            "POST", "/internal/usage/events", status, headers=headers, content=orjson.dumps(list(events))
        )

    async def _call(self, method: str, path: str, status: int, **kwargs: Any) -> Any:
        answer = await self.client.request(method, path, **kwargs)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None


@pytest.fixture
async def door(metering: RunningService) -> Door:
    return Door(client=metering.client)
