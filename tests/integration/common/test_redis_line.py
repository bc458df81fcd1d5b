"""A connection kept at hand: what breaks it costs one command, and the next one mends it."""

import asyncio

import pytest

from libs.common import redis
from libs.common.redis import Line, NoScriptError, RedisError
from tests.harness.services import Place


async def test_a_broken_connection_costs_one_command(place: Place) -> None:
    async with (
        redis.connect(place.redis_url, name="kept", max_connections=1, socket_timeout_s=None) as client,
        redis.connect(place.redis_url, name="other") as other,
    ):
        line = Line(client)
        number = await line.ask("CLIENT", "ID")
        assert await line.ask("CLIENT", "ID") == number
        under_way = asyncio.create_task(line.ask("BLPOP", "nothing-comes-here", 30))
        await Line(other).ask("CLIENT", "KILL", "ID", number)
        with pytest.raises(RedisError):
            await under_way
        assert await line.ask("PING") == b"PONG"
        assert await line.ask("CLIENT", "ID") != number


async def test_a_refused_command_leaves_the_connection_as_it_was(place: Place) -> None:
    async with redis.connect(place.redis_url, name="kept", max_connections=1, socket_timeout_s=None) as client:
        line = Line(client)
        number = await line.ask("CLIENT", "ID")
        with pytest.raises(NoScriptError):
            await line.ask("EVALSHA", "0" * 40, 0)
        assert await line.ask("CLIENT", "ID") == number


async def test_who_gives_up_waiting_does_not_leave_the_answer_to_the_next(place: Place) -> None:
    async with redis.connect(place.redis_url, name="kept", max_connections=1, socket_timeout_s=None) as client:
        line = Line(client)
        assert await line.ask("PING") == b"PONG"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await line.ask("BLPOP", "nothing-comes-here", 30)
        assert await line.ask("ECHO", "mine") == b"mine"
