"""Ten thousand steps of metering's state machine over the real database, in an order nobody has chosen."""

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.integration.metering.test_hold_machine import Metering, machine

__all__ = ["machine"]


def test_ten_thousand_steps_keep_every_promise(machine: type[Metering], request: pytest.FixtureRequest) -> None:
    seed = int(request.config.getoption("--seed") or 0)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=200,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
            derandomize=bool(seed),
        ),
    )
