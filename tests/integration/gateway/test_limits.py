"""Rate limits under concurrency, across replicas, and while Redis is away."""

import asyncio
from collections import Counter

import httpx
import pytest

from libs.common import redis
from services.gateway.limits import Limit, RateLimiter
from services.gateway.wiring import build
from tests.harness.gateway import gateway_settings
from tests.harness.services import Place, run_service

REQUESTS = 3000
LIMIT = 100


@pytest.fixture(autouse=True)
async def empty_buckets(place: Place) -> None:
    async with redis.connect(place.redis_url, name="tests") as client:
        await client.flushdb()  # pyright: ignore[reportUnknownMemberType] - its **kwargs are untyped


async def test_two_replicas_share_one_limit_to_the_request(place: Place) -> None:
    limit = Limit(name="shared", max_requests=LIMIT, window_ms=900_000)
    async with (
        redis.connect(place.redis_url, name="one", socket_timeout_s=None) as one,
        redis.connect(place.redis_url, name="two", socket_timeout_s=None) as two,
    ):
        replicas = (RateLimiter(one), RateLimiter(two))
        verdicts = await asyncio.gather(*(replicas[n % 2].take("someone", limit) for n in range(REQUESTS)))
    # One request returns to the bucket every nine seconds: within this burst none does.
    assert sum(verdict.allowed for verdict in verdicts) == LIMIT
    assert all(verdict.retry_after_s >= 1 for verdict in verdicts if not verdict.allowed)


async def test_whoever_goes_away_leaves_the_others_their_verdicts(place: Place) -> None:
    limit = Limit(name="crowd", max_requests=LIMIT, window_ms=900_000)
    async with redis.connect(place.redis_url, name="one", socket_timeout_s=None) as client:
        limiter = RateLimiter(client)
        await limiter.take("someone", limit)
        for _ in range(10):
            first, *others = (asyncio.create_task(limiter.take("someone", limit)) for _ in range(5))
            await asyncio.wait({first}, timeout=0)
            first.cancel()  # in the middle of asking for all of them
            async with asyncio.timeout(5):
                assert all(verdict.allowed for verdict in await asyncio.gather(*others))


async def test_who_asks_too_often_is_told_when_to_come_again(place: Place) -> None:
    settings = gateway_settings(place, rate_limit_max_requests=3)
    async with run_service(build(settings)) as replica:
        answers = [await replica.client.get("/v1/profile") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429]
    assert answers[3].json()["code"] == "gateway.rate_limited"
    assert int(answers[3].headers["retry-after"]) >= 1
    assert answers[3].headers["content-type"] == "application/problem+json"


async def test_without_redis_a_replica_limits_by_itself(place: Place) -> None:
    settings = gateway_settings(place, rate_limit_max_requests=LIMIT, redis_url="redis://127.0.0.1:9/0")
    async with run_service(build(settings)) as replica:
        answers = [await replica.client.get("/v1/profile") for _ in range(LIMIT + 20)]
    assert Counter(answer.status_code for answer in answers) == {401: LIMIT, 429: 20}


async def test_a_forwarded_address_is_believed_only_from_our_own_proxies(place: Place) -> None:
    settings = gateway_settings(place, rate_limit_max_requests=LIMIT)
    async with run_service(build(settings)) as replica:

        async def ask(number: int) -> httpx.Response:
            return await replica.client.get("/v1/profile", headers={"X-Forwarded-For": f"203.0.113.{number}"})

        answers = [await ask(number) for number in range(LIMIT + 10)]
    assert Counter(answer.status_code for answer in answers) == {401: LIMIT, 429: 10}


async def test_guesses_at_one_account_are_counted_from_all_addresses_together(place: Place) -> None:
    settings = gateway_settings(place, auth_rate_limit_max_requests=3, trusted_proxy_hops=1)
    async with run_service(build(settings), mode="api") as replica:
        addresses = iter(range(1, 250))

        async def post(path: str, email: str, password: str) -> httpx.Response:
            headers = {
                "apikey": settings.next_public_supabase_anon_key.get_secret_value(),
                "x-supabase-api-version": "2024-01-01",
                "x-forwarded-for": f"203.0.113.{next(addresses)}",
            }
            body = {"email": email, "password": password}
            return await replica.client.post(f"/auth/v1/{path}", json=body, headers=headers)

        for name in ("ada", "bob"):
            assert (await post("signup", f"{name}@example.com", "correct horse")).status_code == 200
        heard = list[list[tuple[int, str]]]()
        for email in ("ada@example.com", "nobody@example.com"):
            guesses = [await post("token?grant_type=password", email, "a guess") for _ in range(4)]
            guesses.append(await post("token?grant_type=password", email.upper(), "correct horse"))
            assert [answer.status_code for answer in guesses] == [400, 400, 400, 429, 429]
            assert (guesses[4].json()["code"], guesses[3].json()) == ("over_request_rate_limit", guesses[4].json())
            assert int(guesses[3].headers["retry-after"]) >= 1
            heard.append([(answer.status_code, answer.text) for answer in guesses])
        assert heard[0] == heard[1]  # whether there is such an account is not to be learnt from it
        assert (await post("token?grant_type=password", "bob@example.com", "correct horse")).status_code == 200
