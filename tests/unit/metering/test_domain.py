"""Rules of metering: the life of a hold under every order of events, costs, retry hints."""

from datetime import UTC, datetime, timedelta

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    rule,  # pyright: ignore[reportUnknownVariableType] - its overloads are partly untyped
)

from libs.common.ids import new_id
from services.metering import domain
from services.metering.domain import Hold, HoldInUse, HoldState, Metric, Period, Transition, Usage

PERIOD = Period(start=datetime(2026, 11, 1, tzinfo=UTC), end=datetime(2026, 12, 1, tzinfo=UTC))
LIMIT = 10


def a_hold(**facts: object) -> Hold:
    hold = Hold(
        id=new_id(),
        user_id="u",
        amounts={Metric.RUNS: 1, Metric.TOKENS: 100},
        state=HoldState.HELD,
        period=PERIOD,
        created_at=PERIOD.start,
        expires_at=PERIOD.start,
        is_confirmed=False,
        is_booked=False,
    )
    return hold._replace(**facts)  # pyright: ignore[reportArgumentType] - a builder takes any field


class LifeOfHolds(RuleBasedStateMachine):
    """One account with a limit; the rules of a hold are applied in any order, any number of times."""

    holds: Bundle[int] = Bundle("holds")

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[Hold] = []
        self.used = 0
        self.held = 0
        self.costs: dict[int, int] = {}
        self.was_reopened = False

    @rule(target=holds, amount=st.integers(min_value=1, max_value=LIMIT))
    def ask(self, amount: int) -> int:
        hold = a_hold(amounts={Metric.RUNS: amount}, state=HoldState.RELEASED)
        self.rows.append(hold)
        self._take(len(self.rows) - 1)
        return len(self.rows) - 1

    @rule(number=holds)
    def ask_again(self, number: int) -> None:
        if domain.needs_renewal(self.rows[number]):
            self._take(number)

    @rule(number=holds)
    def hear_of_the_run(self, number: int) -> None:
        transition = domain.confirm(self.rows[number])
        self.was_reopened = self.was_reopened or bool(transition and transition.held)
        self._apply(number, transition)

    @rule(number=holds)
    def release(self, number: int) -> None:
        try:
            self._apply(number, domain.release(self.rows[number]))
        except HoldInUse:
            assert self.rows[number].is_confirmed

    @rule(number=holds)
    def sweep(self, number: int) -> None:
        if self.rows[number].state is HoldState.HELD:
            self._apply(number, domain.sweep(self.rows[number]))

    @rule(number=holds, share=st.sampled_from([0, 1]))
    def finish(self, number: int, share: int) -> None:
        hold = self.rows[number]
        transition = domain.settle(hold)
        self._apply(number, transition)
        if transition is not None:
            assert number not in self.costs, "a run was booked twice"
            self.was_reopened = self.was_reopened or hold.state is not HoldState.HELD
            self.costs[number] = hold.amounts[Metric.RUNS] * share
            self.used += self.costs[number]

    def _take(self, number: int) -> None:
        amount = self.rows[number].amounts[Metric.RUNS]
        if self.used + self.held + amount <= LIMIT:
            self.rows[number] = self.rows[number]._replace(state=HoldState.HELD)
            self.held += amount

    def _apply(self, number: int, transition: Transition | None) -> None:
        if transition is None:
            return
        hold = self.rows[number]
        self.held += transition.held.get(Metric.RUNS, 0)
        self.rows[number] = hold._replace(
            state=transition.state,
            is_confirmed=hold.is_confirmed or transition.confirms,
            is_booked=hold.is_booked or transition.books,
        )

    @invariant()
    def what_is_held_is_what_the_open_holds_hold(self) -> None:
        assert self.held == sum(h.amounts[Metric.RUNS] for h in self.rows if h.state is HoldState.HELD)

    @invariant()
    def what_is_used_is_what_was_booked(self) -> None:
        assert self.used == sum(self.costs.values())

    @invariant()
    def the_limit_holds_unless_a_run_came_to_light_after_its_sweep(self) -> None:
        assert self.was_reopened or self.used + self.held <= LIMIT

    @invariant()
    def a_settled_hold_is_booked(self) -> None:
        assert all(h.is_booked for h in self.rows if h.state is HoldState.SETTLED)


LifeOfHolds.TestCase.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
TestLifeOfHolds = LifeOfHolds.TestCase


def test_a_run_is_counted_when_it_succeeded_and_tokens_when_they_are_billable() -> None:
    def cost(outcome: domain.Outcome, *, is_billable: bool) -> tuple[int, int]:
        amounts = domain.cost_of_run(outcome=outcome, is_billable=is_billable, input_tokens=2, output_tokens=3)
        return amounts[Metric.RUNS], amounts[Metric.TOKENS]

    assert cost("succeeded", is_billable=True) == (1, 5)
    assert cost("failed", is_billable=True) == (0, 5)
    assert cost("cancelled", is_billable=True) == (0, 5)
    assert cost("timed_out", is_billable=False) == (0, 0)


def test_remaining_is_never_negative_and_nothing_means_unlimited() -> None:
    assert domain.remaining(Usage(used=3, held=2), 10) == 5
    assert domain.remaining(Usage(used=900), 50) == 0
    assert domain.remaining(Usage(used=900), None) is None


def test_the_hint_when_to_retry_depends_on_what_is_in_the_way() -> None:
    def hint(usage: Usage, *, left: timedelta) -> int:
        return domain.retry_after_s(asked=1, limit=10, usage=usage, resets_at=PERIOD.end, now=PERIOD.end - left)

    assert hint(Usage(used=5, held=5), left=timedelta(days=9)) == 60
    assert hint(Usage(used=10), left=timedelta(days=9)) == 86_400
    assert hint(Usage(used=10), left=timedelta(minutes=5)) == 300
    assert hint(Usage(used=10), left=timedelta(0)) == 1
