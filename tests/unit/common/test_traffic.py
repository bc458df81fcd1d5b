"""What a process remembers of its last five minutes."""

import pytest

from libs.common.traffic import WINDOW_S, Traffic


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def errors(traffic: Traffic) -> float:
    finding = traffic.share_percent(of=lambda _, s: s >= 500, among=lambda r, _: r != "/health", at_most_percent=5)
    assert (finding.status == "ok") == (finding.value <= 5)
    return finding.value


def test_a_share_counts_what_it_is_asked_about_and_forgets_after_the_window() -> None:
    clock = Time()
    traffic = Traffic(clock=clock)
    for number in range(100):
        traffic.record(route="/v1/runs", status=500 if number < 6 else 200, elapsed_s=0.01)
        traffic.record(route="/health", status=500, elapsed_s=0.01)
    assert errors(traffic) == 6
    clock.now = WINDOW_S + 1
    assert errors(traffic) == 0


def test_a_few_answers_tell_nothing() -> None:
    traffic = Traffic()
    traffic.record(route="/v1/runs", status=500, elapsed_s=9)
    assert errors(traffic) == 0
    assert traffic.p95_ms(at_most_ms=2000).value == 0


@pytest.mark.parametrize(("slow", "status"), [(4, "ok"), (6, "failed")])
def test_p95_is_about_one_answer_in_twenty(slow: int, status: str) -> None:
    traffic = Traffic()
    for number in range(100):
        traffic.record(route="/v1/usage", status=200, elapsed_s=3 if number < slow else 0.02)
        traffic.record(route="/v1/runs", status=200, elapsed_s=29, is_patient=True)
    assert traffic.p95_ms(at_most_ms=2000).status == status
