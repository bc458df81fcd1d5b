"""Asks that share work: in their order, with verdicts of their own, and none at another's expense."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from libs.common.errors import Unavailable
from libs.common.together import Together
from tests.harness.patience import eventually


class Work:
    """Doubles numbers; begins when it is let. Negative numbers are refused, zero breaks the batch it is in."""

    def __init__(
        self, *, most: int = 128, lanes: int = 1, help_after_s: float = 0, name: Callable[[int], object] = id
    ) -> None:
        self.batches: list[list[int]] = []
        self.let_go = asyncio.Event()
        self.failure: Exception | None = None
        self.together: Together[int, int] = Together(
            self._double, most=most, lanes=lanes, help_after_s=help_after_s, name=name
        )

    async def _double(self, asks: Sequence[int]) -> list[int | Exception]:
        self.batches.append(list(asks))
        await self.let_go.wait()
        if self.failure is not None:
            raise self.failure
        if 0 in asks:
            raise ZeroDivisionError
        return [ValueError(ask) if ask < 0 else 2 * ask for ask in asks]

    async def begun(self, batches: int) -> None:
        async def have() -> bool:
            return len(self.batches) >= batches

        await eventually(have)


async def test_who_comes_alone_is_served_at_once_and_a_crowd_shares() -> None:
    work = Work(most=3)
    answers = [work.together.put(1)]
    await work.begun(1)
    answers += [work.together.put(number) for number in (2, 3, 4, 5)]
    assert work.together.waiting == 4
    work.let_go.set()
    assert await asyncio.gather(*answers) == [2, 4, 6, 8, 10]
    assert work.batches == [[1], [2, 3, 4], [5]]
    assert work.together.waiting == 0


async def test_who_asks_again_in_the_moment_of_the_answer_is_served_at_once() -> None:
    work = Work(lanes=1)
    work.let_go.set()
    async with asyncio.timeout(5):
        for number in range(1, 10):
            assert await work.together.ask(number) == 2 * number


async def test_two_lanes_work_at_a_time_and_no_more() -> None:
    work = Work(most=1, lanes=2)
    answers = [work.together.put(number) for number in (1, 2, 3)]
    await work.begun(2)
    assert work.batches == [[1], [2]]
    work.let_go.set()
    assert await asyncio.gather(*answers) == [2, 4, 6]


async def test_another_lane_opens_for_what_has_waited_long_enough_and_not_before() -> None:
    work = Work(lanes=2, help_after_s=0.05)
    answers = [work.together.put(1)]
    await work.begun(1)
    answers += [work.together.put(number) for number in (2, 3)]
    assert work.batches == [[1]]
    await work.begun(2)
    assert work.batches == [[1], [2, 3]]
    answers.append(work.together.put(4))  # both lanes are taken
    work.let_go.set()
    assert await asyncio.gather(*answers) == [2, 4, 6, 8]


async def test_another_lane_opens_at_once_for_what_fills_a_batch() -> None:
    work = Work(most=2, lanes=2, help_after_s=60)
    answers = [work.together.put(1)]
    await work.begun(1)
    answers += [work.together.put(number) for number in (2, 3, 4)]
    await work.begun(2)
    assert work.batches == [[1], [2, 3]]
    work.let_go.set()
    assert await asyncio.gather(*answers) == [2, 4, 6, 8]


async def test_a_verdict_is_raised_to_its_own_ask_alone() -> None:
    work = Work()
    work.let_go.set()
    told = await asyncio.gather(*(work.together.ask(number) for number in (1, -1, 2)), return_exceptions=True)
    assert [told[0], told[2]] == [2, 4]
    assert isinstance(told[1], ValueError)


async def test_one_that_cannot_be_done_takes_no_other_with_it() -> None:
    work = Work()
    work.let_go.set()
    told = await asyncio.gather(*(work.together.ask(number) for number in (1, 0, 2)), return_exceptions=True)
    assert [told[0], told[2]] == [2, 4]
    assert isinstance(told[1], ZeroDivisionError)
    assert work.batches == [[1, 0, 2], [1], [0], [2]]


async def test_what_is_away_for_one_is_away_for_all_and_asked_once() -> None:
    work = Work()
    work.let_go.set()
    work.failure = Unavailable("gone")
    told = await asyncio.gather(*(work.together.ask(number) for number in (1, 2)), return_exceptions=True)
    assert told == [work.failure, work.failure]
    assert work.batches == [[1, 2]]


async def test_asks_of_one_name_do_not_share() -> None:
    work = Work(name=lambda number: number)
    answers = [work.together.put(number) for number in (1, 1, 2)]
    work.let_go.set()
    assert await asyncio.gather(*answers) == [2, 2, 4]
    assert work.batches == [[1, 2], [1]]


async def test_who_has_gone_is_passed_over() -> None:
    work = Work()
    first = work.together.put(1)
    await work.begun(1)
    gone, kept = work.together.put(2), work.together.put(3)
    gone.cancel()
    first.cancel()  # under way already: done all the same
    work.let_go.set()
    assert await kept == 6
    assert work.batches == [[1], [3]]
    with pytest.raises(asyncio.CancelledError):
        await gone
