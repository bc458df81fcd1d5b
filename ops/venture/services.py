"""Talking to the services: readiness, internal calls with a token of our own, and the gateway's account routes."""

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

import httpx

from libs.common import service_tokens
from ops.failure import Failure
from ops.venture.desk import Desk, NotFound

_TIMEOUT: Final = httpx.Timeout(10, connect=3)
_READY_TIMEOUT: Final = httpx.Timeout(6, connect=2)
_MISSING: Final = 404
_REFUSED: Final = 400


@contextmanager
def client(timeout: httpx.Timeout = _TIMEOUT) -> Generator[httpx.Client]:
    # A proxy that the environment names is for the outside.
    with httpx.Client(timeout=timeout, trust_env=False) as it:
        yield it


def readiness(address: str) -> dict[str, Any]:
    """The readiness report of one replica; raises Failure if there is none."""
    try:
        with client(_READY_TIMEOUT) as http:
            answer = cast("dict[str, Any]", http.get(f"{address}/health/ready").json())
    except (httpx.HTTPError, ValueError) as error:
        raise Failure(f"no readiness report ({type(error).__name__})") from None
    if "checks" not in answer:
        raise Failure("no readiness report")
    return answer


def internal(desk: Desk, service: str, method: str, path: str, *, body: Any = None, user_id: str | None = None) -> Any:
    """A call between services, as the operator or, with `user_id`, for that user."""
    user = {"sub": user_id, "role": "authenticated"} if user_id else None
    token = service_tokens.mint(desk.access.need("SERVICE_TOKEN_SECRET"), issuer="ops", audience=service, user=user)
    address = desk.access.need(f"{service.upper()}_URL")
    return _call(f"{service} at {address}", method, f"{address}{path}", body, {"Authorization": f"Bearer {token}"})


def auth_admin(desk: Desk, method: str, path: str, *, body: Any = None) -> Any:
    """The gateway's account routes with the service role's key."""
    key = desk.access.need("SUPABASE_SERVICE_ROLE_KEY")
    address = desk.access.need("GATEWAY_URL")
    headers = {"apikey": key, "Authorization": f"Bearer {key}"}
    return _call(f"the gateway at {address}", method, f"{address}/auth/v1{path}", body, headers)


def _call(who: str, method: str, url: str, body: Any, headers: Mapping[str, str]) -> Any:
    try:
        with client() as http:
            response = http.request(method, url, json=body, headers=dict(headers))
    except httpx.HTTPError as error:
        raise Failure(f"{who} does not answer ({type(error).__name__}). Runbook: service-down") from None
    if response.status_code == _MISSING:
        raise NotFound(f"{who} knows no such thing: {_detail(response)}")
    if response.status_code >= _REFUSED:
        raise Failure(f"{who} refused with {response.status_code}: {_detail(response)}")
    return response.json() if response.content else None


def _detail(response: httpx.Response) -> str:
    try:
        answer = response.json()
    except ValueError:
        return response.text[:200]
    return str(answer.get("detail") or answer.get("msg") or answer.get("error") or answer)[:300]
