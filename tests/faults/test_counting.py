"""Each event has one effect whatever is killed; and the scenario that says so notices when a precaution is left out."""

import secrets

import pytest

from tests.faults.counting import count_under_kills
from tests.faults.worker import CONTROLS
from tests.harness.services import Place

SEEDS: tuple[int, ...] = (11, 22, 33)


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    return request.config.getoption("--seed") or secrets.randbelow(1_000_000)


@pytest.mark.smoke
async def test_events_are_counted_once_under_kills_duplicates_and_a_lost_binding(place: Place, seed: int) -> None:
    verdict = await count_under_kills(place, seed=seed, kills=5)
    print(verdict)
    assert verdict.is_clean, str(verdict)


@pytest.mark.parametrize("control", CONTROLS)
async def test_the_scenario_notices_what_is_left_out(place: Place, control: str) -> None:
    for seed in SEEDS:
        verdict = await count_under_kills(place, seed=seed, kills=5, control=control)
        print(verdict)
        if not verdict.is_clean:
            return
    raise AssertionError(f"{control}: three seeds, and nothing was noticed")
