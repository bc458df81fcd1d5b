"""What admins may do: users, rights, maintenance in every replica, and the trace each act leaves."""

from collections.abc import AsyncGenerator

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
    admin: SignedIn, other: SignedIn, settings: Settings
) -> None:
    async with run_service(build(settings)) as replica:
        elsewhere = {"Authorization": other.client.headers["Authorization"]}
        assert (await admin.client.put("/v1/admin/maintenance", json={"expires_in_s": 3})).status_code == 200

        async def is_closed_in_both() -> bool:
            here = await other.client.get("/v1/profile")
            there = await replica.client.get("/v1/profile", headers=elsewhere)
            return (here.status_code, there.status_code) == (503, 503)

        await eventually(is_closed_in_both, within_s=2)
        closed = await replica.client.get("/v1/profile", headers=elsewhere)
        assert closed.content == MAINTENANCE
        assert closed.headers["retry-after"] == "3600"
        assert (await replica.client.get("/health")).status_code == 200
        assert (await replica.client.post("/billing/webhook", content=b"{}")).content != MAINTENANCE
        assert (await admin.client.get("/v1/profile")).status_code == 200

        async def is_open_in_both() -> bool:
            here = await other.client.get("/v1/profile")
            there = await replica.client.get("/v1/profile", headers=elsewhere)
            return (here.status_code, there.status_code) == (200, 200)

        await eventually(is_open_in_both, within_s=6)


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
