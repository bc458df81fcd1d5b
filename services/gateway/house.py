"""The other services as operators ask them: signed calls, and a refusal of theirs told as it was meant."""

from collections.abc import Mapping
from typing import Any, Literal
from uuid import UUID

import orjson

from libs.common.errors import VentureError
from services.gateway.domain import Identity
from services.gateway.upstreams import Upstream

Name = Literal["billing", "metering", "agents"]


class ServiceRefused(VentureError):
    """A service's own refusal, with its status and its words."""

    code = "gateway.service_refused"

    def __init__(self, status: int, detail: str) -> None:
        super().__init__(detail)
        self.status = status  # pyright: ignore[reportAttributeAccessIssue] - per instance here, per class elsewhere


class House:
    def __init__(self, upstreams: Mapping[Name, Upstream]) -> None:
        self._upstreams = upstreams

    @property
    def services(self) -> tuple[Name, ...]:
        return tuple(self._upstreams)

    async def ask(
        self,
        name: Name,
        method: Literal["GET", "POST", "DELETE"],
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
        user_id: UUID | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """What the service answered; with `user_id`, as if to this user. Raises UpstreamUnavailable, ServiceRefused."""
        identity = None
        if user_id is not None:
            identity = Identity(user_id=user_id, session_id=None, email="", claims={})
        response = await self._upstreams[name].call(
            method,
            path,
            identity=identity,
            params=[(key, str(value)) for key, value in (params or {}).items() if value not in (None, "")],
            content=orjson.dumps(body) if body is not None else None,
            headers={**({"content-type": "application/json"} if body is not None else {}), **(headers or {})},
        )
        if response.is_success:
            return response.json() if response.content else None
        raise ServiceRefused(response.status_code, _detail(response.content, name))


def _detail(content: bytes, name: str) -> str:
    try:
        return str(orjson.loads(content)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return f"The {name} service refused."
