"""Stories of thirty steps: an emulated Stripe and billing driven together, and compared after each story."""

import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.harness.servers import Servers
from tests.harness.stripe_machine import a_machine, machine_in

MANY = settings(
    max_examples=25,
    stateful_step_count=30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_many_stories_end_in_stripe_s_objects(servers: Servers, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    number = int(request.config.getoption("--seed") or 0) or random.SystemRandom().randrange(1, 2**31)
    sys.stdout.write(f"--seed {number}\n")
    with a_machine(servers, servers.vhosts[0], tmp_path / "stripe.db", seed=number) as (runner, world):
        run_state_machine_as_test(seed(number)(machine_in(runner, world)), settings=MANY)  # pyright: ignore[reportUnknownMemberType]
        sys.stdout.write(f"{world.deaths} kills\n")
