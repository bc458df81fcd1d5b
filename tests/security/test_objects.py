"""Other people's objects and admins' routes, tried by somebody who has no business there.

Paths are taken from the gateway's own OpenAPI document, so that a new one is tried as soon as there is one.
"""

from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.harness.house import House
from tests.harness.patience import eventually
from tests.security.outside import NEVER_TOLD, SECRET, Neighbours, Operation

TOLD_OF_ALL = """
    -- That each run has begun and ended, and that each hold was settled: the last that happens to somebody's rows.
    SELECT 2 * (SELECT count(*) FROM public.agent_runs WHERE user_id = $1)
        + (SELECT count(*) FROM metering.holds WHERE user_id = $1)
        = (SELECT count(*) FROM gateway.user_events WHERE user_id::text = $1 AND type <> 'entitlements.changed')
    """


async def rows_of(house: House, user_id: str) -> str:
    """All that the database holds of somebody, but for what the clock alone changes."""
    tables = await house.place.database.fetch(
        """
        SELECT format('%I.%I', n.nspname, c.relname) AS name
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
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


# Other people's objects -----------------------------------------------------------------------------------------------


async def test_another_users_object_looks_exactly_like_one_that_does_not_exist(
    house: House, operations: list[Operation], neighbours: Neighbours
) -> None:
    async def told_of_all() -> bool:
        return await house.place.database.fetchval(TOLD_OF_ALL, neighbours.bea.id)

    await eventually(told_of_all)
    before = await rows_of(house, neighbours.bea.id)
    tried = 0
    for operation in operations:
        # What takes a signature or the service's own key is refused before any object is looked for.
        if "{" not in operation.path or operation.path.startswith(("/webhooks/", "/auth/v1/")):
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
        if operation.method != "GET" or operation.path.endswith("/events"):
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


# Admins ---------------------------------------------------------------------------------------------------------------


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
