"""One house, seen from outside: internal routes, and what answers give away.

The services' internal routes are taken from their applications, so that a new one is tried as soon as there is one.
"""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from fastapi.openapi.utils import get_openapi

from libs.common.ids import new_id
from tests.harness.house import House
from tests.harness.services import RunningService, service_headers
from tests.security.outside import SECRET, Neighbours

# Internal routes ------------------------------------------------------------------------------------------------------


async def raw(house: House, request: bytes) -> tuple[int, bytes]:
    """Send bytes no client library would send; return the status, 0 for a connection closed without an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.gateway.base_url.rpartition(":")[2]))
    writer.write(request)
    try:
        async with asyncio.timeout(5):
            answer = await reader.read(65_536)
    except (TimeoutError, ConnectionResetError):
        answer = b""
    finally:
        writer.close()
    status = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    return (int(status[1]) if status else 0), answer


INTERNAL = "/internal/holds"
SPELLINGS = [
    INTERNAL, f"/{INTERNAL}", f"/.{INTERNAL}", "/%69nternal/holds", "/%2finternal/holds", "/internal%2fholds",
    "/INTERNAL/holds", "/internal;x/holds", "/internal/holds;x", "/v1/../internal/holds", "/v1/..;/internal/holds",
    "/v1/%2e%2e/internal/holds",
    "/v1/runs/../../internal/holds", "/v1/runs/%2e%2e%2f%2e%2e%2finternal%2fholds", "/auth/v1/../../internal/holds",
    "/webhooks/../internal/holds", "/webhooks/generic/../../internal/holds", "/health/../internal/holds",
    "/internal\\holds", "/internal/holds/", "/internal/./holds", "/internal/holds?x", "/internal/holds#x",
    "/\u2215internal/holds", "/internal/holds%00",
    "/internal/holds%0d%0aHost:%20x", "http://127.0.0.1/internal/holds", "http://metering:8002/internal/holds",
    "//metering:8002/internal/holds", "@metering:8002/internal/holds", "metering:8002",
]  # fmt: skip
HOSTS = [
    "gateway", "metering:8002", "svc/#@evil", "localhost:4000/?x=", "localhost:4000/internal/holds?x=",
    "x/internal/holds#",
    "evil.tld@gateway", "", "[::1]", "127.0.0.1:99999",
]  # fmt: skip


@pytest.mark.parametrize("target", SPELLINGS)
async def test_no_spelling_of_an_internal_route_leads_inside(house: House, neighbours: Neighbours, target: str) -> None:
    hold_id = new_id()
    body = json.dumps({"hold_id": str(hold_id), "amounts": {"runs": 1}}).encode()
    for token in ("", f"Authorization: Bearer {neighbours.ada.session['access_token']}\r\n"):
        head = (
            f"POST {target} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n{token}Connection: close\r\n"
        )
        request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        status, answer = await raw(house, request)
        assert status in {0, 400, 401, 404, 405, 422}, answer[:300]
    assert not await house.place.database.fetch("SELECT FROM metering.holds WHERE id = $1", hold_id)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", [INTERNAL, "/internal/usage", "/v1/admin/users"])
async def test_no_host_header_opens_a_door_or_comes_back(house: House, host: str, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: evil.tld\r\nX-Original-URL: /health\r\n"
    head += "X-Rewrite-URL: /health\r\nX-Forwarded-Proto: javascript\r\nX-Forwarded-Prefix: /internal\r\n"
    head += "Connection: close\r\n\r\n"
    status, answer = await raw(house, head.encode())
    assert status in {0, 400, 401, 404}, answer[:300]
    assert b"evil" not in answer


def routes_of(service: RunningService) -> Iterator[tuple[str, str]]:
    app: Any = service.service.app
    while not hasattr(app, "routes"):
        app = app._app if hasattr(app, "_app") else app.app
    for path, methods in get_openapi(title="", version="", routes=app.routes)["paths"].items():
        yield from ((method.upper(), path) for method in methods)


async def test_every_internal_route_of_every_service_needs_a_service_token(
    house: House, neighbours: Neighbours
) -> None:
    tried = 0
    user_token = {"Authorization": f"Bearer {neighbours.ada.session['access_token']}"}
    claimed = {"X-User-Id": neighbours.bea.id, "X-Internal": "1", "X-Service-Role": "service_role"}
    for name, service in (("billing", house.billing), ("metering", house.metering), ("agents", house.agents)):
        elsewhere = service_headers("gateway", user_id=None)
        for method, path in routes_of(service):
            if not path.startswith("/internal"):
                # Nothing else is there but health and Stripe's own door, which has a lock of its own.
                assert path.startswith("/health") or (name, path) == ("billing", "/webhooks/stripe"), f"{name}: {path}"
                continue
            for headers in ({}, user_token, claimed, elsewhere):
                answer = await service.client.request(method, re.sub(r"\{[^}]+\}", str(uuid4()), path), headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (401, "service_token_refused"), (
                    f"{name} {method} {path}"
                )
                tried += 1
    assert tried >= 140


async def test_services_believe_the_token_alone_in_whose_name_a_call_is_made(
    neighbours: Neighbours, house: House
) -> None:
    sly = {"X-User-Id": neighbours.bea.id, "X-Forwarded-User": neighbours.bea.id}
    own = service_headers("agents", user_id=new_id())
    answer = await house.agents.client.get(
        "/internal/runs", headers={**own, **sly}, params={"user_id": neighbours.bea.id}
    )
    assert SECRET not in answer.text


# What every answer says -----------------------------------------------------------------------------------------------


async def test_answers_carry_their_guards_and_name_no_software(house: House, neighbours: Neighbours) -> None:
    for path in ("/health", "/v1/profile", "/v1/nothing", "/auth/v1/user", "/auth/v1/settings", "/", "/openapi.json"):
        answer = await neighbours.ada.client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert "server" not in answer.headers
        assert "x-powered-by" not in answer.headers
        if path.startswith(("/v1", "/auth")):
            assert answer.headers["cache-control"] == "no-store", path


@pytest.mark.parametrize(
    "path", ["/redoc", "/metrics", "/debug", "/console/../metrics", "/.env", "/.git/config", "/server-status"]
)
async def test_there_is_no_door_for_the_curious(house: House, path: str) -> None:
    for service in (house.gateway, house.billing, house.metering, house.agents):
        assert (await service.client.get(path)).status_code == 404
    for service in (house.billing, house.metering, house.agents):
        assert (await service.client.get("/openapi.json")).status_code == 404


@pytest.mark.parametrize("method", ["TRACE", "CONNECT", "PROPFIND", "QUERY"])
async def test_methods_nobody_needs_are_refused(house: House, method: str) -> None:
    for path in ("/health", "/v1/profile", "/auth/v1/user"):
        status, answer = await raw(
            house, f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-Echo: canary\r\nConnection: close\r\n\r\n".encode()
        )
        assert status in {0, 400, 401, 404, 405}, answer[:200]
        assert b"canary" not in answer


@pytest.mark.parametrize(
    "origin", ["null", "https://evil.tld", "http://localhost:3000.evil.tld", "http://localhost:3000@evil.tld", "*"]
)
async def test_a_page_of_another_origin_may_read_nothing(house: House, neighbours: Neighbours, origin: str) -> None:
    preflight = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    asked = await neighbours.ada.client.options("/v1/runs", headers=preflight)
    read = await neighbours.ada.client.get("/v1/profile", headers={"Origin": origin})
    for answer in (asked, read):
        assert "access-control-allow-origin" not in answer.headers
        assert "access-control-allow-credentials" not in answer.headers


@pytest.mark.parametrize("path", ["/v1/runs", "/v1/templates", "/v1/background-events"])
@pytest.mark.parametrize(
    "query",
    [
        "limit=-1", "limit=0", "limit=1000000000", "limit=abc", "limit=1e9", "cursor=x", "cursor=%00", "cursor=../..",
        "cursor=eyJhIjoxfQ", "cursor=MjAyNi0wMS0wMXwn", "limit=1&cursor=%27%20OR%201=1--",
    ],
)  # fmt: skip
async def test_a_list_is_bounded_and_its_cursor_is_its_own(neighbours: Neighbours, path: str, query: str) -> None:
    answer = await neighbours.ada.client.get(f"{path}?{query}")
    assert answer.status_code in {400, 422}, f"{answer.status_code} {answer.text[:200]}"


async def test_what_a_user_writes_stays_the_text_it_is(neighbours: Neighbours) -> None:
    for text in ("{{7*7}}", "${7*7}", "<%= 7*7 %>", "#{7*7}", "{0.__class__}", "%s%n", "'; DROP TABLE users--"):
        made = await neighbours.ada.client.patch("/v1/profile", json={"name": text})
        assert made.json()["name"] == text
        preview = await neighbours.ada.client.post("/v1/prompts/preview", json={"task": text})
        assert preview.status_code == 200
        assert "49" not in preview.text or "49" in text
