"""Limits of parts of the house, who counts as one caller, and the record of who was refused."""

import httpx
import pytest

from libs.common import redis
from services.gateway.settings import Settings
from services.gateway.wiring import build
from tests.harness.gateway import gateway_settings
from tests.harness.patience import eventually
from tests.harness.services import Place, RunningService, run_service
from tests.integration.gateway.conftest import SignedIn


@pytest.fixture
def settings(place: Place) -> Settings:
    return gateway_settings(place, rate_limit_route_groups="export=2", trusted_proxy_hops=1)


@pytest.fixture(autouse=True)
async def empty_buckets(place: Place) -> None:
    async with redis.connect(place.redis_url, name="tests") as client:
        await client.flushdb()  # pyright: ignore[reportUnknownMemberType] - its **kwargs are untyped


async def test_a_part_of_the_house_has_its_own_limit_and_admins_see_whom_it_refused(
    user: SignedIn, place: Place
) -> None:
    answers = [await user.client.get("/v1/export") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [503, 503, 429, 429]  # metering is away, and limits are not
    assert answers[3].json()["policy"] == "export"
    assert answers[3].headers["ratelimit-policy"] == '"export";q=2;w=900'
    assert answers[3].headers["ratelimit"].startswith('"export";r=0;t=')
    passed = await user.client.get("/v1/profile")
    assert passed.headers["ratelimit-policy"] == '"general";q=100000;w=900'

    await place.database.execute("UPDATE public.user_profiles SET premium_features = '{\"admin\": true}'")

    async def is_recorded() -> bool:
        answer = await user.client.get("/v1/admin/limited")
        if answer.status_code != 200:
            return False
        return [(one["subject"], one["limit_name"], one["requests"]) for one in answer.json()["items"]] == [
            (f"user:{user.user_id}", "export", 2)
        ]

    await eventually(is_recorded, within_s=10)
    async with place.database.connect_as("venture_operator") as operator:
        assert await operator.fetchval("SELECT sum(requests) FROM gateway.limited_requests") == 2


async def test_all_addresses_of_an_ipv6_network_are_one_caller_and_only_our_proxys_word_counts(place: Place) -> None:
    settings = gateway_settings(place, rate_limit_max_requests=3, trusted_proxy_hops=1)
    async with run_service(build(settings), mode="api") as replica:

        async def ask(forwarded: str) -> int:
            answer: httpx.Response = await replica.client.get("/v1/profile", headers={"X-Forwarded-For": forwarded})
            return answer.status_code

        one_network = [await ask(f"2001:db8:1:2::{number:x}") for number in range(4)]
        assert one_network == [401, 401, 401, 429]
        assert await ask("2001:db8:1:3::1") == 401
        # What the client wrote in front of our proxy's entry changes nothing.
        assert [await ask(f"198.51.100.{n}, 203.0.113.9") for n in range(4)] == [401, 401, 401, 429]


async def test_an_account_is_deleted_only_with_a_word_of_confirmation(user: SignedIn, place: Place) -> None:
    for body in (None, {}, {"confirm": False}, {"confirm": "somebody@example.com"}, {"confirm": ""}):
        refused = await user.client.request("DELETE", "/v1/account", json=body)
        assert (refused.status_code, refused.json()["code"]) == (422, "gateway.deletion_unconfirmed")
    assert await place.database.fetchval("SELECT count(*) FROM auth.users") == 1
    assert (await user.client.delete("/v1/account", params={"confirm": user.email.upper()})).status_code == 202
    assert await place.database.fetchval("SELECT count(*) FROM auth.users") == 0


async def test_a_key_made_twice_under_one_idempotency_key_is_one_and_its_kept_answer_is_sealed(
    user: SignedIn, gateway: RunningService, place: Place
) -> None:
    body = {"name": "ci", "expires_in_s": 86_400}
    first, again = [
        await user.client.post("/v1/api-keys", json=body, headers={"Idempotency-Key": "a-key"}) for _ in range(2)
    ]
    assert (first.status_code, first.content) == (201, again.content)
    key = first.json()["key"]
    answer = await gateway.client.get("/v1/profile", headers={"Authorization": f"Bearer {key}"})
    assert answer.status_code == 200
    (kept,) = await place.database.fetch("SELECT response_body FROM gateway.idempotency_keys")
    assert key.encode() not in kept["response_body"]
    assert await place.database.fetchval("SELECT count(*) FROM gateway.api_keys") == 1
    rotated = await user.client.post(f"/v1/api-keys/{first.json()['id']}/rotate", json={"overlap_s": 60})
    assert rotated.status_code == 201
    lifetimes = await place.database.fetch(
        "SELECT extract(epoch FROM expires_at - created_at)::int AS s FROM gateway.api_keys WHERE id = $1",
        rotated.json()["id"],
    )
    assert lifetimes == [{"s": 86_400}]
