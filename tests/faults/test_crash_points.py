"""Death between two systems, at each named point, again and again: what was accepted happens, and happens once."""

import asyncio
import secrets
import shlex
import time
from collections.abc import Generator
from pathlib import Path
from typing import Final

import pytest

from ops.stack.stack import Stack
from tests.faults.crashing import POINTS
from tests.faults.other_programs import started_otherwise
from tests.faults.soak.books import BrokenPromise
from tests.faults.soak.load import SETTINGS, open_load
from tests.faults.soak.money import wait_for

DEATHS: Final = 5
VISITORS: Final = 3
PATIENCE_S: Final = 240.0


@pytest.fixture(scope="module")
def roomy_stack(tmp_path_factory: pytest.TempPathFactory) -> Generator[Stack, None, None]:
    """Without limits of rate: what is asked again and again here would soon be too much of one person."""
    stack = Stack(tmp_path_factory.mktemp("roomy") / "home")
    try:
        stack.up(settings=SETTINGS)
        yield stack
    finally:
        stack.wipe()


@pytest.mark.parametrize("name", POINTS)
async def test_death_between_two_systems_loses_nothing(
    roomy_stack: Stack, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seed, point = request.config.getoption("--seed") or secrets.randbelow(1_000_000), POINTS[name]
    left = tmp_path / "left"
    left.write_text(str(DEATHS), encoding="ascii")

    async def is_spent() -> bool:
        return left.read_text(encoding="ascii") == "0"

    print(f"seed {seed}")  # at once: who fails before the verdict is to be repeated, too
    began = time.monotonic()
    module = f"-m services.{point.service}.main"
    crashing = f"-m tests.faults.crashing {point.service} {shlex.quote(name)} {left}"
    async with open_load(roomy_stack, seed=seed, visitors=VISITORS) as load:
        try:
            async with (
                started_otherwise(roomy_stack, point.service, lambda script: script.replace(module, crashing)),
                asyncio.TaskGroup() as group,
            ):
                load.start(group)
                await wait_for(is_spent, what=f"{DEATHS} deaths", within_s=PATIENCE_S, every_s=0.2)
                load.over.set()
        except* BrokenPromise:
            print(f"still to be fetched from Stripe: {await load.promises.open_work_at_stripe()}")
            raise
        await load.promises.settle()
        verdict, parked = await load.promises.verdict(seed), await load.promises.parked()
    print(
        f"{name}: {DEATHS} deaths in {time.monotonic() - began:.0f} s; {verdict} recovered {load.books.recovered} "
        f"late {len(load.books.late)} p99 {load.books.p99_s:.2f}s settled {load.promises.settled_s:.1f}s"
    )
    assert verdict.is_clean, load.promises.left
    assert parked == 0
