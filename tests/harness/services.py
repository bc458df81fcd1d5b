"""Services run in this process, on real servers, through the very `build` that production uses."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

import aio_pika
import httpx
from aio_pika.abc import AbstractIncomingMessage
from aio_pika.exceptions import ChannelNotFoundEntity

from libs.common import service_tokens
from libs.common.broker import RETRY_DELAYS_S, parked_queue, queue_name, retry_exchange
from libs.common.events import CATALOGUE
from libs.common.process import Mode, Service, serving
from libs.common.settings import CommonSettings
from tests.harness.database import TestDatabase
from tests.harness.servers import SERVICES

SERVICE_TOKEN_SECRET: Final = "a-service-token-secret-for-tests-0123456789"

SettingsT = TypeVar("SettingsT", bound=CommonSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one test's services live: its database, the worker's vhost and Redis database."""

    database: TestDatabase
    vhost: str
    redis_number: int

    def amqp_url(self, user: str) -> str:
        return f"{self.database.servers.amqp_urls[user]}/{self.vhost}"

    @property
    def redis_url(self) -> str:
        return f"{self.database.servers.redis_url}/{self.redis_number}"

    def settings_for(self, settings_class: type[SettingsT], service: str, **overrides: Any) -> SettingsT:
        """Settings as the environment would give them, without reading the environment of the test run."""
        values: dict[str, Any] = {
            "environment": "test",
            "port": 0,
            "database_url": self.database.url(f"venture_{service}"),
            "amqp_url": self.amqp_url(service),
            "redis_url": self.redis_url,
            "service_token_secret": SERVICE_TOKEN_SECRET,
            **overrides,
        }
        return settings_class(**values)

    async def parked(self, queue: str) -> list[AbstractIncomingMessage]:
        """Take what is parked behind a queue; nothing if it was never declared."""
        connection = await aio_pika.connect(self.amqp_url("operator"))
        async with connection, connection.channel() as channel:
            try:
                source = await channel.declare_queue(parked_queue(queue), passive=True)
            except ChannelNotFoundEntity:
                return []
            messages: list[AbstractIncomingMessage] = []
            while (message := await source.get(fail=False)) is not None:
                await message.ack()
                messages.append(message)
            return messages

    async def delete_queues(self) -> None:
        """Leave the vhost as a fresh one, so that no message of this test reaches the next."""
        connection = await aio_pika.connect(self.amqp_url("operator"))
        async with connection, connection.channel() as channel:
            for service in SERVICES:
                for event_type in CATALOGUE:
                    name = queue_name(service, event_type)
                    await channel.queue_delete(name)
                    await channel.queue_delete(parked_queue(name))
                for delay_s in RETRY_DELAYS_S:
                    await channel.queue_delete(retry_exchange(service, delay_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningService:
    service: Service
    base_url: str
    client: httpx.AsyncClient


@asynccontextmanager
async def run_service(
    built: AbstractAsyncContextManager[Service], *, mode: Mode = "all", port: int = 0
) -> AsyncGenerator[RunningService, None]:
    """Serve a built service, on a free port unless told one; its loops run, and it is stopped as a signal would."""
    async with built as service, serving(service, host="127.0.0.1", port=port, mode=mode) as running:
        base_url = f"http://127.0.0.1:{running.port}"
        async with httpx.AsyncClient(base_url=base_url, timeout=10) as client:
            yield RunningService(service=service, base_url=base_url, client=client)


def service_headers(audience: str, *, user_id: UUID | None = None, **claims: Any) -> dict[str, str]:
    """Headers of an internal call as the gateway makes it, for a signed-in user or for the gateway itself."""
    user: Mapping[str, Any] | None = None
    if user_id is not None:
        user = {"sub": str(user_id), "role": "authenticated", "email": "someone@example.com", **claims}
    token = service_tokens.mint(SERVICE_TOKEN_SECRET, issuer="gateway", audience=audience, user=user)
    return {"Authorization": f"Bearer {token}"}
