"""The gate in front of every call to Stripe: how fast, how many at once, and whether at all."""

import asyncio

import pytest

from services.billing.domain import PaymentsRefused, PaymentsUnavailable
from services.billing.pacing import BREAKS_AFTER, Gate
from tests.harness.patience import eventually


async def fail(gate: Gate, error: Exception) -> None:
    with pytest.raises(type(error)):
        async with gate.enter():
            raise error


async def test_calls_are_spaced_by_the_pace() -> None:
    gate, loop = Gate(per_s=100, at_once=10), asyncio.get_running_loop()
    starts: list[float] = []

    async def call() -> None:
        async with gate.enter():
            starts.append(loop.time())

    await asyncio.gather(*(call() for _ in range(20)))
    assert max(starts) - min(starts) >= 0.19


async def test_no_more_are_under_way_than_may_be() -> None:
    gate, release = Gate(per_s=10_000, at_once=3), asyncio.Event()
    under_way: list[int] = []

    async def call(number: int) -> None:
        async with gate.enter():
            under_way.append(number)
            await release.wait()

    async def is_full() -> bool:
        return len(under_way) == 3

    async with asyncio.TaskGroup() as group:
        for number in range(9):
            group.create_task(call(number))
        await eventually(is_full)
        assert len(under_way) == 3
        release.set()
    assert len(under_way) == 9


async def test_failures_in_a_row_shut_the_gate_and_a_success_opens_it() -> None:
    gate = Gate(per_s=10_000, at_once=3, broken_for_s=0.3)
    for _ in range(BREAKS_AFTER):
        await fail(gate, PaymentsUnavailable("away"))
    with pytest.raises(PaymentsUnavailable, match="in a moment"):
        async with gate.enter():
            raise AssertionError("a shut gate lets nothing through")

    async def opens() -> bool:
        try:
            async with gate.enter():
                with pytest.raises(PaymentsUnavailable):  # while one tries, the others are still turned away
                    await fail(gate, PaymentsRefused("not reached"))
                return True
        except PaymentsUnavailable:
            return False

    await eventually(opens)
    async with gate.enter(), gate.enter():
        pass
    await fail(gate, PaymentsUnavailable("away"))
    async with gate.enter():  # one failure after a success shuts nothing
        pass


async def test_a_refusal_is_an_answer_and_no_failure() -> None:
    gate = Gate(per_s=10_000, at_once=3)
    for _ in range(BREAKS_AFTER * 2):
        await fail(gate, PaymentsRefused("no"))
    async with gate.enter():
        pass
