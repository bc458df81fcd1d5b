"""When a hold without confirmation may be given up: on proof that its confirmation would have arrived."""

from libs.common.broker import QueueState
from services.metering.jobs import NewsWatch

EMPTY = QueueState(consumers=1, waiting=0, parked=0)
BACKLOG = QueueState(consumers=1, waiting=7, parked=0)
NOT_CONSUMED = QueueState(consumers=0, waiting=0, parked=0)


def watched(*observations: tuple[float, QueueState | None]) -> NewsWatch:
    watch = NewsWatch()
    for at_s, state in observations:
        watch.observe(state, at_s=at_s)
    return watch


def test_nothing_is_sure_before_the_broker_was_in_reach_for_a_while() -> None:
    watch = watched((0, EMPTY), (5, EMPTY), (40, EMPTY))
    assert watch.overdue_needed_s(at_s=40) is None


def test_an_expired_hold_is_abandoned_once_the_news_have_surely_arrived() -> None:
    watch = watched((0, EMPTY), (45, EMPTY))
    assert watch.overdue_needed_s(at_s=45) == 0
    assert watch.overdue_needed_s(at_s=50) == 0


def test_during_an_outage_of_any_length_no_hold_made_in_it_is_given_up() -> None:
    watch = watched((0, EMPTY), (50, EMPTY), (55, None), (655, None))
    # The last proof was at 50 s: only holds made until 5 s, and so expired since 65 s, are surely abandoned.
    assert watch.overdue_needed_s(at_s=655) == 655 - 50 - 15


def test_after_an_outage_the_gateway_gets_time_to_send_what_it_kept() -> None:
    watch = watched((0, EMPTY), (50, EMPTY), (55, None), (655, EMPTY), (660, EMPTY))
    assert watch.overdue_needed_s(at_s=660) == 660 - 50 - 15
    watch.observe(EMPTY, at_s=700)
    assert watch.overdue_needed_s(at_s=700) == 0


def test_a_backlog_of_news_is_no_proof() -> None:
    watch = watched((0, BACKLOG), (100, BACKLOG))
    assert watch.overdue_needed_s(at_s=100) is None
    watch.observe(EMPTY, at_s=105)
    assert watch.overdue_needed_s(at_s=105) == 0


def test_a_queue_nobody_consumes_is_no_proof() -> None:
    watch = watched((0, EMPTY), (45, EMPTY), (50, NOT_CONSUMED), (200, NOT_CONSUMED))
    assert watch.overdue_needed_s(at_s=200) == 200 - 45 - 15
