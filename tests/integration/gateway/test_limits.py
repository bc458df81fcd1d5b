"""Rate limits under concurrency, across replicas, and while Redis is away."""

import asyncio
from collections import Counter

import httpx
import pytest

from libs.common import redis
from services.gateway.limits import SOCKET_TIMEOUT_S, Limit, RateLimiter
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
        redis.connect(place.redis_url, name="one", socket_timeout_s=SOCKET_TIMEOUT_S) as one,
        redis.connect(place.redis_url, name="two", socket_timeout_s=SOCKET_TIMEOUT_S) as two,
    ):
        replicas = (RateLimiter(one), RateLimiter(two))
        verdicts = await asyncio.gather(*(replicas[n % 2].take("someone", limit) for n in range(REQUESTS)))
    # One request returns to the bucket every nine seconds: within this burst none does.
    assert sum(verdict.allowed for verdict in verdicts) == LIMIT
    assert all(verdict.retry_after_s >= 1 for verdict in verdicts if not verdict.allowed)


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
