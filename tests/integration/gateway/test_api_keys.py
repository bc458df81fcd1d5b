"""Keys for programs: scoped, expiring, rotated with an overlap, ended everywhere within seconds."""

from typing import Any

import httpx

from services.gateway.settings import Settings
from services.gateway.wiring import build
from tests.harness.patience import eventually
from tests.harness.services import Place, RunningService, run_service
from tests.integration.gateway.conftest import SignedIn


async def make(user: SignedIn, **body: Any) -> dict[str, Any]:
    answer = await user.client.post("/v1/api-keys", json={"name": "ci", **body})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def ask(gateway: RunningService, key: str, path: str = "/v1/profile", method: str = "GET") -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return await gateway.client.request(method, path, headers=headers, json={} if method == "PATCH" else None)


async def test_a_key_acts_as_its_user_within_its_scopes(user: SignedIn, gateway: RunningService, place: Place) -> None:
    key = await make(user, scopes=["profile:read"])
    assert (await ask(gateway, key["key"])).json()["email"] == user.email
    for path, method in (("/v1/profile", "PATCH"), ("/v1/usage", "GET"), ("/v1/api-keys", "GET")):
        refused = await ask(gateway, key["key"], path, method)
        assert (refused.status_code, refused.json()["code"]) == (403, "gateway.scope_missing")
    shown = (await user.client.get("/v1/api-keys")).json()["items"][0]
    assert shown["last_used_at"] is not None
    assert "key" not in shown
    stored = await place.database.fetch("SELECT * FROM gateway.api_keys")
    assert key["key"] not in str(stored)


async def test_no_scope_reaches_admin_account_or_other_keys(
    user: SignedIn, gateway: RunningService, place: Place
) -> None:
    await place.database.execute("UPDATE public.user_profiles SET premium_features = '{\"admin\": true}'")
    key = await make(user)
    for path, method in (("/v1/admin/users", "GET"), ("/v1/account", "DELETE"), ("/v1/api-keys", "POST")):
        assert (await ask(gateway, key["key"], path, method)).status_code == 403


async def test_a_revoked_key_ends_in_every_replica(user: SignedIn, gateway: RunningService, settings: Settings) -> None:
    key = await make(user)
    async with run_service(build(settings)) as replica:
        assert (await ask(replica, key["key"])).status_code == 200
        assert (await user.client.delete(f"/v1/api-keys/{key['id']}")).status_code == 204

        async def is_refused() -> bool:
            return (await ask(replica, key["key"])).status_code == 401

        await eventually(is_refused, within_s=5)


async def test_a_rotated_key_works_beside_the_new_one_for_the_overlap(user: SignedIn, gateway: RunningService) -> None:
    old = await make(user)
    new = (await user.client.post(f"/v1/api-keys/{old['id']}/rotate", json={"overlap_s": 1})).json()
    assert [(await ask(gateway, one["key"])).status_code for one in (old, new)] == [200, 200]

    async def is_over() -> bool:
        return (await ask(gateway, old["key"])).status_code == 401

    await eventually(is_over, within_s=6)
    assert (await ask(gateway, new["key"])).status_code == 200


async def test_made_up_keys_are_refused(gateway: RunningService) -> None:
    for key in ("vc_", "vc_' OR 1=1--", "vc_" + "a" * 48):
        assert (await ask(gateway, key)).status_code == 401
