"""The house behind fault proxies: every way to PostgreSQL, RabbitMQ and Redis can be broken while it works."""

from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from tests.faults.fault_proxy import FaultProxy, open_proxy
from tests.harness.house import House, open_house
from tests.harness.services import Place, SettingsT

Edge = Literal["postgres", "rabbitmq", "redis"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProxiedPlace(Place):
    proxies: Mapping[Edge, FaultProxy]

    def settings_for(self, settings_class: type[SettingsT], service: str, **overrides: Any) -> SettingsT:
        return Place.settings_for(
            self,
            settings_class,
            service,
            database_url=self.proxies["postgres"].via(self.database.url(f"venture_{service}")),
            amqp_url=self.proxies["rabbitmq"].via(self.amqp_url(service)),
            redis_url=self.proxies["redis"].via(self.redis_url),
            **overrides,
        )


@asynccontextmanager
async def open_house_behind_proxies(place: Place) -> AsyncGenerator[tuple[House, Mapping[Edge, FaultProxy]], None]:
    addresses: Mapping[Edge, str] = {
        "postgres": place.database.superuser_url,
        "rabbitmq": place.amqp_url("operator"),
        "redis": place.redis_url,
    }
    async with AsyncExitStack() as stack:
        proxies: Mapping[Edge, FaultProxy] = {
            edge: await stack.enter_async_context(open_proxy(url)) for edge, url in addresses.items()
        }
        proxied = ProxiedPlace(
            database=place.database, vhost=place.vhost, redis_number=place.redis_number, proxies=proxies
        )
        yield await stack.enter_async_context(open_house(proxied)), proxies
