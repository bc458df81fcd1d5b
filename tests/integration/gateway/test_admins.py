"""What admins may do: users, rights, maintenance in every replica, and the trace each act leaves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from uuid import uuid4

import httpx
import pytest

from services.gateway.settings import Settings
from services.gateway.wiring import build
from tests.harness.patience import eventually
from tests.harness.services import Place, RunningService, run_service
from tests.integration.gateway.conftest import SignedIn

MAINTENANCE = b'{"error":"Service temporarily unavailable for maintenance","retryAfter":3600}'


@pytest.fixture
async def admin(user: SignedIn, place: Place) -> SignedIn:
    """The user of these tests, made an admin as the runbook does it."""
    await place.database.execute("UPDATE public.user_profiles SET premium_features = '{\"admin\": true}'")

    async def is_admin() -> bool:
        return (await user.client.get("/v1/admin/users")).status_code == 200

    await eventually(is_admin, within_s=5)
    return user


@pytest.fixture
async def other(anon: httpx.AsyncClient, gateway: RunningService) -> AsyncGenerator[SignedIn, None]:
    body = {"email": "bob@example.com", "password": "correct horse"}
    session = (await anon.post("/auth/v1/signup", json=body)).json()
    headers = {"Authorization": f"Bearer {session['access_token']}"}
    async with httpx.AsyncClient(base_url=gateway.base_url, headers=headers, timeout=10) as client:
        yield SignedIn(user_id=session["user"]["id"], email="bob@example.com", session=session, client=client)


async def test_who_is_no_admin_finds_nothing(other: SignedIn) -> None:
    for method, path in (("GET", "/v1/admin/users"), ("GET", "/v1/admin/audit"), ("PUT", "/v1/admin/maintenance")):
        answer = await other.client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


async def test_a_change_of_a_user_takes_effect_and_is_audited(admin: SignedIn, other: SignedIn) -> None:
    path = f"/v1/admin/users/{other.user_id}"
    assert (await admin.client.patch(path, json={"tier": "pro", "reason": "a gift"})).json()["tier"] == "pro"
    assert (await other.client.get("/v1/profile")).json()["subscription_tier"] == "pro"
    assert (await admin.client.patch(path, json={"banned": True})).status_code == 200
    banned = await other.client.get("/v1/profile")
    assert (banned.status_code, banned.json()["code"]) == (403, "gateway.account_banned")
    entries = (await admin.client.get("/v1/admin/audit", params={"subject": other.user_id})).json()["items"]
    assert [(entry["before"]["banned"], entry["after"]["banned"]) for entry in entries] == [
        (False, True),
        (False, False),
    ]
    assert entries[1]["before"]["tier"] == "free"
    assert entries[1]["after"]["reason"] == "a gift"


async def test_rights_given_are_taken_away_within_seconds(admin: SignedIn, other: SignedIn) -> None:
    path = f"/v1/admin/users/{other.user_id}"
    await admin.client.patch(path, json={"admin": True})
    assert (await other.client.get("/v1/admin/users")).status_code == 200
    await admin.client.patch(path, json={"admin": False})
    assert (await other.client.get("/v1/admin/users")).status_code == 404
    own = await admin.client.patch(f"/v1/admin/users/{admin.user_id}", json={"admin": False})
    assert (own.status_code, own.json()["code"]) == (403, "gateway.own_rights")


async def test_users_are_found_and_paged(admin: SignedIn, other: SignedIn) -> None:
    first = (await admin.client.get("/v1/admin/users?limit=1")).json()
    second = (await admin.client.get(f"/v1/admin/users?limit=1&cursor={first['next_cursor']}")).json()
    assert {first["items"][0]["email"], second["items"][0]["email"]} == {admin.email, other.email}
    assert second["next_cursor"] is None
    found = (await admin.client.get("/v1/admin/users?search=BOB")).json()["items"]
    assert [user["id"] for user in found] == [other.user_id]
    for bad in ("limit=0", "limit=-1", "limit=abc", "limit=1000000000", "cursor=nonsense", "cursor=%00"):
        assert (await admin.client.get(f"/v1/admin/users?{bad}")).status_code == 422


async def test_maintenance_closes_every_replica_to_users_alone_and_ends_by_itself(
    admin: SignedIn, other: SignedIn, gateway: RunningService, settings: Settings, place: Place
) -> None:
    async with run_service(build(settings)) as elsewhere, AsyncExitStack() as stack:
        replicas = (gateway, elsewhere)
        streams = [await stack.enter_async_context(_open_stream(one, other)) for one in replicas]
        closing = await admin.client.put("/v1/admin/maintenance", json={"expires_in_s": 600})
        assert closing.status_code == 200
        await eventually(partial(_all_answer, replicas, other, 503), within_s=2)
        for one in replicas:
            for method, path in (("GET", "/v1/profile"), ("POST", "/v1/runs"), ("GET", "/v1/events")):
                closed = await one.client.request(method, path, headers=_bearer(other))
                assert (closed.status_code, closed.content) == (503, MAINTENANCE)
                assert closed.headers["retry-after"] == "3600"
                assert closed.headers["content-type"] == "application/json"
            assert (await one.client.get("/health")).json()["status"] == "ok"
            assert (await one.client.get("/health/live")).status_code == 200
            for webhook in ("/billing/webhook", f"/webhooks/github/{uuid4()}"):
                passed = await one.client.post(webhook, content=b"{}")
                assert passed.json()["code"] == "gateway.upstream_unavailable"  # let in, to services that are away
            assert (await one.client.get("/v1/profile", headers=_bearer(admin))).status_code == 200
            assert (await one.client.get("/v1/admin/users", headers=_bearer(admin))).status_code == 200
        # Streams that were open go on, and are told what happens meanwhile.
        await place.database.execute(
            "UPDATE public.user_profiles SET subscription_tier = 'pro' WHERE user_id = $1", other.user_id
        )
        for lines in streams:
            async with asyncio.timeout(10):
                assert "event: entitlements.changed" in [line async for line in _until_data(lines)]
        assert await _all_answer(replicas, other, 503)
        # Nobody opens the house: its time runs out. The database's clock decides, so the end is moved there.
        switch = (await admin.client.get("/v1/admin/switches")).json()["items"][0]
        assert 500 < switch["expires_in_s"] <= 600
        await place.database.execute("UPDATE gateway.switches SET expires_at = now() + interval '2 seconds'")
        await eventually(partial(_all_answer, replicas, other, 200), within_s=6)


async def _all_answer(replicas: Sequence[RunningService], user: SignedIn, status: int) -> bool:
    answers = [await one.client.get("/v1/profile", headers=_bearer(user)) for one in replicas]
    return [answer.status_code for answer in answers] == [status] * len(replicas)


def _bearer(user: SignedIn) -> dict[str, str]:
    return {"Authorization": user.client.headers["Authorization"]}


@asynccontextmanager
async def _open_stream(at: RunningService, user: SignedIn) -> AsyncGenerator[AsyncIterator[str], None]:
    """The lines of the user's event stream, which has begun."""
    async with at.client.stream("GET", "/v1/events", headers=_bearer(user), timeout=30) as response:
        lines = response.aiter_lines()
        assert await anext(lines) == ": still here"
        yield lines


async def _until_data(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    async for line in lines:
        yield line
        if line.startswith("data:"):
            return


async def test_one_route_group_is_closed_alone(admin: SignedIn, other: SignedIn) -> None:
    await admin.client.put("/v1/admin/maintenance", json={"route_group": "usage"})
    assert (await other.client.get("/v1/usage")).content == MAINTENANCE
    assert (await other.client.get("/v1/profile")).status_code == 200
    await admin.client.request("DELETE", "/v1/admin/maintenance", json={"route_group": "usage"})
    assert (await other.client.get("/v1/usage")).content != MAINTENANCE


async def test_an_admin_looks_at_one_user_and_finds_acts_in_the_audit_log(admin: SignedIn, other: SignedIn) -> None:
    seen = (await admin.client.get(f"/v1/admin/users/{other.user_id}")).json()
    assert (seen["email"], seen["sessions"], seen["is_banned"]) == (other.email, 1, False)
    assert "encrypted_password" not in seen
    await admin.client.put("/v1/admin/maintenance", json={"route_group": "usage", "reason": "a"})
    await admin.client.put("/v1/admin/maintenance", json={"route_group": "usage", "reason": "b", "expires_in_s": 60})
    found = (await admin.client.get("/v1/admin/audit?action=maintenance")).json()["items"]
    assert [one["after"]["reason"] for one in found] == ["b", "a"]
    assert found[0]["before"]["reason"] == "a"
    assert found[1]["before"] is None
    mine = await admin.client.get("/v1/admin/audit", params={"actor": admin.user_id, "action": "maintenance"})
    assert mine.json()["items"] == found
    assert (await admin.client.get("/v1/admin/audit?actor=nobody")).json()["items"] == []


async def test_services_that_are_away_are_shown_as_such(admin: SignedIn) -> None:
    health = (await admin.client.get("/v1/admin/health")).json()
    assert {name: one["status"] for name, one in health.items()} == dict.fromkeys(
        ("agents", "billing", "metering"), "failed"
    )


async def test_an_admin_may_end_the_own_session_while_the_house_is_closed(
    admin: SignedIn, other: SignedIn, anon: httpx.AsyncClient
) -> None:
    await admin.client.put("/v1/admin/maintenance", json={})
    apikey = {"apikey": anon.headers["apikey"]}
    assert (await other.client.get("/auth/v1/user", headers=apikey)).content == MAINTENANCE
    assert (await admin.client.get("/auth/v1/user", headers=apikey)).status_code == 200
