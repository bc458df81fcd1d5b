"""Bad input gets a clear 4xx, says what is wrong, and changes nothing."""

import base64
import json
import time
from collections.abc import AsyncGenerator
from typing import Any

import jwt
import pytest

from libs.common import service_tokens
from tests.harness.house import House, open_house
from tests.harness.services import SERVICE_TOKEN_SECRET, Place

RUNS = "/v1/runs"


@pytest.fixture(scope="module")
async def house(lasting_place: Place) -> AsyncGenerator[House, None]:
    """One for all of them: nothing here changes it."""
    async with open_house(lasting_place) as opened:
        yield opened


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b"", 422),
        (b"[]", 422),
        (b"null", 422),
        (b'{"task": ""}', 422),
        (b'{"task": 7}', 422),
        (b'{"task": "x", "unknown": 1}', 422),
        (b'{"task": "x", "api_base": "http://169.254.169.254/"}', 422),
        (b'{"task": "x", "model": "http://evil.example"}', 422),
        (b'{"task": "x", "vibe": {"playfulness": 101}}', 422),
        (b'{"task": "x", "max_output_tokens": 1e309}', 422),
        (b'{"task": "x", "max_output_tokens": NaN}', 422),
        (b'{"task": "a\\u0000b"}', 422),
        (b'{"task": "\\ud800"}', 422),
        (b'{"task": "x", "context": {"k": "\\ud800"}}', 422),
        (b'{"task": "x", "context": {"k": "\\u0000"}}', 422),
        (b'{"task": "x", "context": ' + b'{"a":' * 5_000 + b"1" + b"}" * 5_000 + b"}", 400),
        (b'{"task": "x", "template_id": "../../etc/passwd"}', 422),
        (b'{"task": "' + b"x" * 20_001 + b'"}', 422),
        (b'{"task": "' + b"x" * 1_100_000 + b'"}', 413),
    ],
)
async def test_a_broken_run_request_is_refused_with_its_reason(house: House, body: bytes, status: int) -> None:
    async with house.person() as ada:
        answer = await ada.client.post(RUNS, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status, answer.text[:300]
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == status
        assert problem["detail"]
        assert problem["code"]
        assert not await house.place.database.fetch("SELECT FROM metering.holds WHERE user_id = $1", ada.id)


async def test_a_form_is_not_taken_for_json(house: House) -> None:
    async with house.person() as ada:
        answer = await ada.client.post(RUNS, data={"task": "x"})
        assert answer.status_code in {415, 422}


def forged(house: House, token: str) -> dict[str, str]:
    header, payload, signature = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    key = {"kid": "test-key"}

    def encode(part: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")

    anon = house.settings.next_public_supabase_anon_key.get_secret_value()
    service_role = house.settings.supabase_service_role_key.get_secret_value()
    return {
        "alg none": f"{encode({'alg': 'none', 'typ': 'JWT', **key})}.{payload}.",
        "no signature": f"{header}.{payload}.",
        "another user": f"{header}.{encode({**claims, 'sub': '01a20000-0000-7000-8000-000000000000'})}.{signature}",
        "HS256": jwt.encode(claims, "x" * 32, algorithm="HS256", headers=key),
        "expired": jwt.encode({**claims, "exp": int(time.time()) - 1}, "x" * 32, algorithm="HS256", headers=key),
        "unknown kid": f"{encode({'alg': 'ES256', 'typ': 'JWT', 'kid': '../../dev/null'})}.{payload}.{signature}",
        "crit": f"{encode({'alg': 'ES256', 'typ': 'JWT', 'crit': ['x'], **key})}.{payload}.{signature}",
        "garbage": "garbage",
        "too long": "a" * 100_000,
        "a service token": service_tokens.mint(SERVICE_TOKEN_SECRET, issuer="gateway", audience="gateway"),
        "the service key": service_role,
        "anon key": anon,
    }


async def test_tokens_that_are_not_ours_open_nothing(house: House) -> None:
    async with house.person() as ada:
        for name, token in forged(house, ada.session["access_token"]).items():
            answer = await house.gateway.client.get("/v1/profile", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code in {401, 413, 431}, f"{name}: {answer.status_code}"
        two = [("Authorization", f"Bearer {ada.session['access_token']}"), ("Authorization", "Bearer other")]
        assert (await house.gateway.client.get("/v1/profile", headers=two)).status_code == 401
        refresh = {"Authorization": f"Bearer {ada.session['refresh_token']}"}
        assert (await house.gateway.client.get("/v1/profile", headers=refresh)).status_code == 401


@pytest.mark.parametrize(
    "path", ["/internal/holds", "//internal/holds", "/%69nternal/holds", "/v1/../internal/holds", "/internal;x/holds"]
)
async def test_internal_routes_cannot_be_reached_through_the_gateway(house: House, path: str) -> None:
    async with house.person() as ada:
        answer = await ada.client.post(path, json={"hold_id": "01a20000-0000-7000-8000-000000000000", "amounts": {}})
        assert answer.status_code in {401, 404}


async def test_a_users_token_opens_no_internal_route_of_a_service(house: House) -> None:
    async with house.person() as ada:
        for service in (house.metering, house.agents, house.billing):
            for headers in ({"Authorization": f"Bearer {ada.session['access_token']}"}, {"X-User-Id": ada.id}):
                answer = await service.client.get("/internal/usage", headers=headers)
                assert answer.status_code == 401
        wrong = service_tokens.mint(SERVICE_TOKEN_SECRET, issuer="gateway", audience="agents", user={"sub": ada.id})
        refused = await house.metering.client.get("/internal/usage", headers={"Authorization": f"Bearer {wrong}"})
        assert refused.status_code == 401


async def test_who_may_not_send_is_told_so_and_not_that_the_house_is_broken(house: House) -> None:
    async with house.person() as ada:
        made = await ada.client.post("/v1/webhook-endpoints", json={"kind": "github", "name": "the project"})
        path = f"/webhooks/github/{made.json()['id']}"
        headers = {"X-Hub-Signature-256": f"sha256={'0' * 64}", "X-GitHub-Event": "push", "X-GitHub-Delivery": "1"}
        refused = await house.gateway.client.post(path, json={}, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (401, "agents.webhook_signature_invalid"), refused.text
        assert (await ada.client.get("/v1/background-events")).json()["items"] == []


async def test_identity_headers_of_a_client_are_worth_nothing(house: House) -> None:
    async with house.person() as ada, house.person() as eve:
        sly = {"X-User-Id": ada.id, "X-Internal": "1", "X-Service-Role": "service_role"}
        profile = await eve.client.get("/v1/profile", headers=sly)
        assert profile.json()["email"] == eve.email


@pytest.mark.parametrize(
    "request_id", ["ok-1.2_3", "bad id", "x" * 65, 'inject"\r\nX-Evil: 1'.replace("\r\n", "%0d%0a")]
)
async def test_a_request_id_is_echoed_only_if_it_is_harmless(house: House, request_id: str) -> None:
    answer = await house.gateway.client.get("/health", headers={"X-Request-ID": request_id})
    echoed = answer.headers["x-request-id"]
    assert (echoed == request_id) == (request_id == "ok-1.2_3")
    assert "x-evil" not in answer.headers


@pytest.mark.parametrize("last_event_id", ["-1", "1; DROP", "1e3", "9" * 30])
async def test_a_strange_last_event_id_is_refused(house: House, last_event_id: str) -> None:
    async with house.person() as ada:
        run = (await ada.client.post(RUNS, json={"task": "x"})).json()
        path = run["links"]["events"]
        assert (await ada.client.get(path, headers={"Last-Event-ID": last_event_id})).status_code == 422


async def test_a_profile_takes_what_is_the_users_and_nothing_else(house: House) -> None:
    async with house.person() as ada:
        for body in (
            {"subscription_tier": "enterprise"},
            {"premium_features": {"admin": True}},
            {"timezone": "Mars/Base"},
        ):
            assert (await ada.client.patch("/v1/profile", json=body)).status_code == 422
        changed = await ada.client.patch(
            "/v1/profile", json={"name": "Ada", "stack": ["python"], "timezone": "Europe/Berlin"}
        )
        assert (changed.status_code, changed.json()["name"], changed.json()["subscription_tier"]) == (
            200,
            "Ada",
            "free",
        )
