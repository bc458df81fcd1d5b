"""Whatever users, Stripe, its deliveries and dying workers do in whatever order: the tables are Stripe's."""

from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.harness.servers import Servers
from tests.harness.stripe_machine import a_machine, machine_in

FEW = settings(
    max_examples=3,
    stateful_step_count=14,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def test_stripe_and_billing_driven_together_agree_in_the_end(servers: Servers, worker_id: str, tmp_path: Path) -> None:
    vhost = servers.vhosts[int(worker_id.removeprefix("gw")) if worker_id != "master" else 0]
    with a_machine(servers, vhost, tmp_path / "stripe.db", seed=1) as (runner, world):
        run_state_machine_as_test(machine_in(runner, world), settings=FEW)  # pyright: ignore[reportUnknownMemberType]
