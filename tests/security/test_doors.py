"""One house, seen from outside: other people's objects, admins' routes, internal routes, and what answers give away.

Paths are taken from the gateway's own OpenAPI document and from the services' own routes, so that a new one is tried
as soon as there is one.
"""

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from fastapi.openapi.utils import get_openapi

from libs.common.ids import new_id
from tests.harness.house import House, Person
from tests.harness.patience import eventually
from tests.harness.services import RunningService, service_headers

SECRET = "topsecret of Bea"
# What a body must hold for a route to look for its object at all.
BODIES: Mapping[str, Any] = {
    "/feedback": {"verdict": "approved"},
    "/bookmark": {"bookmarked": True},
    "/approval": {"decision": "approved"},
    "/v1/templates/": {"name": "x", "instructions": "x"},
    "/v1/admin/users/": {"tier": "pro"},
}
NEVER_TOLD = re.compile(
    r"encrypted_password|refresh_key|token_hash|code_hash|key_hash|stripe_customer_id|stripe_session_id|idempotency_key"
    r"|lease_token|former_secret|argon2|cus_[A-Za-z0-9]{6}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    method: str
    path: str

    def at(self, value: str) -> str:
        return re.sub(r"\{[^}]+\}", value, self.path)

    @property
    def body(self) -> Any:
        return next((body for part, body in BODIES.items() if part in self.path), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbours:
    """Ada, who tries, and Bea, who owns `ids`."""

    ada: Person
    bea: Person
    ids: frozenset[str]


@pytest.fixture(scope="module")
async def operations(house: House) -> list[Operation]:
    document = (await house.gateway.client.get("/openapi.json")).json()
    found = [
        Operation(method=method.upper(), path=path)
        for path, methods in document["paths"].items()
        for method in methods
        if method in {"get", "post", "put", "patch", "delete"}
    ]
    assert len(found) > 40
    return found


@pytest.fixture(scope="module")
async def neighbours(house: House) -> AsyncGenerator[Neighbours, None]:
    async with house.person() as ada, house.person() as bea:
        run = await bea.client.post("/v1/runs", json={"task": SECRET}, headers={"Prefer": "wait=20"})
        assert run.status_code == 200, run.text
        made = [run.json()["id"]]
        for path, body in (
            ("/v1/templates", {"name": SECRET, "agent_type": "suggestion", "instructions": SECRET}),
            ("/v1/webhook-endpoints", {"kind": "generic", "name": SECRET}),
            ("/v1/api-keys", {"name": SECRET, "scopes": ["runs"]}),
        ):
            answer = await bea.client.post(path, json=body)
            assert answer.status_code == 201, answer.text
            made.append(answer.json()["id"])
        yield Neighbours(ada=ada, bea=bea, ids=frozenset(made))


async def rows_of(house: House, user_id: str) -> str:
    """All that the database holds of somebody, but for what the clock alone changes."""
    tables = await house.place.database.fetch(
        """
        SELECT format('%I.%I', n.nspname, c.relname) AS name FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind = 'r' AND n.nspname IN ('auth', 'public', 'gateway', 'billing', 'metering', 'agents')
          AND c.relname NOT IN ('outbox', 'inbox') ORDER BY 1
        """
    )
    found = [
        await house.place.database.fetchval(
            f"SELECT string_agg(t::text, '; ' ORDER BY t::text) FROM {table['name']} AS t WHERE t::text LIKE $1",  # noqa: S608
            f"%{user_id}%",
        )
        for table in tables
    ]
    return "\n".join(str(part) for part in found)


def without_trace(answer: httpx.Response) -> Any:
    body = answer.json()
    return {key: value for key, value in body.items() if key != "trace_id"}


# Other people's objects ------------------------------------------------------------------------------------------------


async def test_another_users_object_looks_exactly_like_one_that_does_not_exist(
    house: House, operations: list[Operation], neighbours: Neighbours
) -> None:
    async def settled() -> bool:
        return not (await neighbours.bea.client.get("/v1/usage")).json()["metrics"]["tokens"]["held"]

    await eventually(settled)
    before = await rows_of(house, neighbours.bea.id)
    tried = 0
    for operation in operations:
        if "{" not in operation.path or operation.path.startswith("/webhooks/"):
            continue
        nothing = await neighbours.ada.client.request(operation.method, operation.at(str(uuid4())), json=operation.body)
        assert nothing.status_code == 404, f"{operation}: {nothing.status_code} {nothing.text[:200]}"
        for row_id in {*neighbours.ids, neighbours.bea.id}:
            answer = await neighbours.ada.client.request(operation.method, operation.at(row_id), json=operation.body)
            assert (answer.status_code, without_trace(answer)) == (404, without_trace(nothing)), str(operation)
            assert SECRET not in answer.text
            tried += 1
    assert tried >= 75
    assert await rows_of(house, neighbours.bea.id) == before
    print(f"\nobject sweep: {tried} requests for another's object, all 404")


async def test_ids_in_bodies_queries_and_headers_reach_nobody_elses_objects(neighbours: Neighbours) -> None:
    ada, bea = neighbours.ada, neighbours.bea
    for row_id in neighbours.ids:
        run = await ada.client.post(
            "/v1/runs", json={"task": "x", "template_id": row_id}, headers={"Prefer": "wait=20"}
        )
        assert SECRET not in run.text
        for query in ("template_id", "run_id", "user_id", "id"):
            assert SECRET not in (await ada.client.get(f"/v1/runs?{query}={row_id}")).text
    for path in (
        "/v1/runs",
        "/v1/templates",
        "/v1/webhook-endpoints",
        "/v1/api-keys",
        "/v1/background-events",
        "/v1/usage",
    ):
        listed = await ada.client.get(path, headers={"X-User-Id": bea.id}, params={"user_id": bea.id})
        assert SECRET not in listed.text, path
    key = {"Idempotency-Key": "the-same-for-both"}
    theirs = await bea.client.post("/v1/runs", json={"task": "x"}, headers=key)
    own = await ada.client.post("/v1/runs", json={"task": "x"}, headers=key)
    assert (theirs.status_code, own.status_code) == (202, 202), f"{theirs.text} {own.text}"
    assert theirs.json()["id"] != own.json()["id"]


async def test_a_forged_webhook_learns_nothing_of_which_endpoints_exist(house: House, neighbours: Neighbours) -> None:
    async with httpx.AsyncClient(base_url=house.gateway.base_url) as anybody:
        answers = [
            await anybody.post(f"/webhooks/generic/{row_id}", json={}, headers={"X-Signature-256": "sha256=00"})
            for row_id in (*neighbours.ids, str(uuid4()))
        ]
    assert not [answer for answer in answers if answer.is_success or SECRET in answer.text]


async def test_answers_hold_nothing_that_is_ours_alone(operations: list[Operation], neighbours: Neighbours) -> None:
    """Every list and every object of one's own, read as its owner."""
    bea, read = neighbours.bea, 0
    for operation in operations:
        if operation.method != "GET" or operation.path in {"/v1/events"} or operation.path.endswith("/events"):
            continue
        for row_id in neighbours.ids if "{" in operation.path else [""]:
            answer = await bea.client.get(operation.at(row_id))
            found = NEVER_TOLD.search(answer.text)
            assert found is None, f"{operation.path} tells {found}"
            read += answer.is_success
    user = await bea.client.get("/auth/v1/user", headers={"apikey": "x"})
    assert NEVER_TOLD.search(user.text) is None
    assert read >= 12


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/runs", {"task": "x"}),
        ("/v1/templates", {"name": "x", "agent_type": "suggestion", "instructions": "x"}),
        ("/v1/webhook-endpoints", {"kind": "generic", "name": "x"}),
        ("/v1/api-keys", {"name": "x", "scopes": ["runs"]}),
        ("/v1/prompts/preview", {"task": "x"}),
    ],
)
@pytest.mark.parametrize(
    "extra",
    [
        "user_id", "id", "is_admin", "cost_usd", "status", "secret", "api_base", "base_url", "endpoint", "proxy",
        "extra_headers", "callbacks", "api_key", "timeout", "stream_options",
    ],
)  # fmt: skip
async def test_a_field_that_is_not_the_users_to_set_is_refused(
    neighbours: Neighbours, path: str, body: dict[str, Any], extra: str
) -> None:
    answer = await neighbours.ada.client.post(path, json={**body, extra: "http://169.254.169.254/"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")


@pytest.mark.parametrize(
    "model",
    [
        "http://evil.example/v1", "openai:gpt@http://127.0.0.1", "openai/../../x", "//169.254.169.254", "file:///etc/passwd",
        "openai:", "offline\r\nHost: evil", "gopher://127.0.0.1:6379/_", "http:。。", "x" * 5_000,
    ],
)  # fmt: skip
async def test_a_model_is_a_name_and_never_an_address(neighbours: Neighbours, model: str) -> None:
    answer = await neighbours.ada.client.post("/v1/runs", json={"task": "x", "model": model})
    assert answer.status_code == 422, answer.text


# Admins ----------------------------------------------------------------------------------------------------------------


async def test_admins_routes_do_not_exist_for_anybody_else(
    house: House, operations: list[Operation], neighbours: Neighbours
) -> None:
    """Not for users, not without a token, not for a program of whoever, not even one of an admin."""
    key = (await neighbours.ada.client.post("/v1/api-keys", json={"name": "x", "scopes": ["runs", "usage"]})).json()[
        "key"
    ]
    service_key = house.settings.supabase_service_role_key.get_secret_value()
    routes = [operation for operation in operations if operation.path.startswith("/v1/admin/")]
    assert len(routes) >= 8
    async with httpx.AsyncClient(base_url=house.gateway.base_url) as anybody:
        for operation in routes:
            path = operation.at(neighbours.bea.id)
            for headers, refusals in (
                ({"Authorization": f"Bearer {neighbours.ada.session['access_token']}"}, {404}),
                ({}, {401, 404}),
                ({"Authorization": f"Bearer {key}"}, {403, 404}),
                ({"Authorization": f"Bearer {service_key}"}, {401, 404}),
                ({"X-Admin": "true", "X-Role": "service_role"}, {401, 404}),
            ):
                answer = await anybody.request(operation.method, path, json=operation.body, headers=headers)
                assert answer.status_code in refusals, f"{operation} {headers}: {answer.status_code}"
    assert (await neighbours.bea.client.get("/v1/profile")).json()["subscription_tier"] == "free"


async def test_an_admin_whose_session_ended_or_who_means_themself_is_refused(
    house: House, operations: list[Operation]
) -> None:
    async with house.person() as admin, house.person() as other:
        await house.place.database.execute(
            "UPDATE public.user_profiles SET premium_features = '{\"admin\": true}' WHERE user_id = $1::uuid", admin.id
        )

        async def is_admin() -> bool:
            return (await admin.client.get("/v1/admin/users")).status_code == 200

        await eventually(is_admin)
        for change in ({"admin": False}, {"admin": True}, {"banned": False}):
            answer = await admin.client.patch(f"/v1/admin/users/{admin.id}", json=change)
            assert (answer.status_code, answer.json()["code"]) == (403, "gateway.own_rights")
        listed = await admin.client.get("/v1/admin/users", params={"search": other.email})
        assert len(listed.json()["items"]) == 1
        assert NEVER_TOLD.search(listed.text) is None
        await admin.client.post("/auth/v1/logout", headers=house.anon_headers())
        for operation in operations:
            if operation.path.startswith("/v1/admin/"):
                answer = await admin.client.request(operation.method, operation.at(other.id), json=operation.body)
                assert answer.status_code == 401, f"{operation}: {answer.status_code}"


# Internal routes -------------------------------------------------------------------------------------------------------


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
    INTERNAL, f"/{INTERNAL}", f"/.{INTERNAL}", "/%69nternal/holds", "/%2finternal/holds", "/internal%2fholds", "/INTERNAL/holds",
    "/internal;x/holds", "/internal/holds;x", "/v1/../internal/holds", "/v1/..;/internal/holds", "/v1/%2e%2e/internal/holds",
    "/v1/runs/../../internal/holds", "/v1/runs/%2e%2e%2f%2e%2e%2finternal%2fholds", "/auth/v1/../../internal/holds",
    "/webhooks/../internal/holds", "/webhooks/generic/../../internal/holds", "/health/../internal/holds", "/internal\\holds",
    "/internal/holds/", "/internal/./holds", "/internal/holds?x", "/internal/holds#x", "/\u2215internal/holds", "/internal/holds%00",
    "/internal/holds%0d%0aHost:%20x", "http://127.0.0.1/internal/holds", "http://metering:8002/internal/holds",
    "//metering:8002/internal/holds", "@metering:8002/internal/holds", "metering:8002",
]  # fmt: skip
HOSTS = [
    "gateway", "metering:8002", "svc/#@evil", "localhost:4000/?x=", "localhost:4000/internal/holds?x=", "x/internal/holds#",
    "evil.tld@gateway", "", "[::1]", "127.0.0.1:99999",
]  # fmt: skip


@pytest.mark.parametrize("target", SPELLINGS)
async def test_no_spelling_of_an_internal_route_leads_inside(house: House, neighbours: Neighbours, target: str) -> None:
    body = json.dumps({"hold_id": str(new_id()), "amounts": {"runs": 1}}).encode()
    for token in ("", f"Authorization: Bearer {neighbours.ada.session['access_token']}\r\n"):
        head = (
            f"POST {target} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n{token}Connection: close\r\n"
        )
        request = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
        status, answer = await raw(house, request)
        assert status in {0, 400, 401, 404, 405, 422}, answer[:300]
    assert await house.place.database.fetchval(
        "SELECT count(*) FROM metering.holds WHERE user_id = $1", neighbours.ada.id
    ) == await house.place.database.fetchval(
        "SELECT count(*) FROM public.agent_runs WHERE user_id = $1", neighbours.ada.id
    )


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("path", [INTERNAL, "/internal/usage", "/v1/admin/users"])
async def test_no_host_header_opens_a_door_or_comes_back(house: House, host: str, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Host: evil.tld\r\nX-Original-URL: /health\r\n"
    head += "X-Rewrite-URL: /health\r\nX-Forwarded-Proto: javascript\r\nX-Forwarded-Prefix: /internal\r\nConnection: close\r\n\r\n"
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
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), (
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


# What every answer says ------------------------------------------------------------------------------------------------


async def test_answers_carry_their_guards_and_name_no_software(house: House, neighbours: Neighbours) -> None:
    for path in ("/health", "/v1/profile", "/v1/nothing", "/auth/v1/user", "/auth/v1/settings", "/", "/openapi.json"):
        answer = await neighbours.ada.client.get(path)
        assert answer.headers["x-content-type-options"] == "nosniff", path
        assert "server" not in answer.headers
        assert "x-powered-by" not in answer.headers
        if path.startswith(("/v1", "/auth")):
            assert answer.headers["cache-control"] == "no-store", path


@pytest.mark.parametrize(
    "path", ["/docs", "/redoc", "/metrics", "/debug", "/console/../metrics", "/.env", "/.git/config", "/server-status"]
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
