"""When a service that does not answer is no longer waited for, and how its return is noticed."""

from services.gateway.domain import FIRST_PAUSE_S, LONGEST_PAUSE_S, OPENS_AFTER, Breaker


def opened(at_s: float = 0.0) -> Breaker:
    breaker = Breaker()
    for _ in range(OPENS_AFTER):
        assert breaker.lets_through(at_s)
        breaker.failed(at_s)
    return breaker


def test_silences_in_a_row_open_it_and_one_answer_between_them_does_not() -> None:
    breaker = Breaker()
    for _ in range(3 * OPENS_AFTER):
        for _ in range(OPENS_AFTER - 1):
            breaker.failed(0.0)
        breaker.answered()
    assert breaker.lets_through(0.0)
    assert not opened().lets_through(0.0)


def test_it_says_once_that_it_opened_and_once_that_it_closed() -> None:
    breaker = Breaker()
    assert [breaker.failed(0.0) for _ in range(OPENS_AFTER + 1)] == [False] * (OPENS_AFTER - 1) + [True, False]
    assert [breaker.answered(), breaker.answered()] == [True, False]


def test_one_call_at_a_time_goes_and_looks() -> None:
    breaker = opened()
    assert [breaker.lets_through(FIRST_PAUSE_S) for _ in range(3)] == [True, False, False]
    breaker.answered()
    assert all(breaker.lets_through(FIRST_PAUSE_S) for _ in range(3))


def test_pauses_grow_to_a_bound() -> None:
    breaker, now_s, pauses = opened(), 0.0, list[float]()
    for _ in range(6):
        looked_s = next(now_s + n / 10 for n in range(1000) if breaker.lets_through(now_s + n / 10))
        pauses.append(round(looked_s - now_s, 1))
        now_s = looked_s
        breaker.failed(now_s)
    assert pauses == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert pauses[-1] == LONGEST_PAUSE_S


def test_a_look_that_was_given_up_lets_the_next_one_look() -> None:
    breaker = opened()
    assert breaker.lets_through(FIRST_PAUSE_S)
    breaker.gave_up()
    assert breaker.lets_through(FIRST_PAUSE_S)
